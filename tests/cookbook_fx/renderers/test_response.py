from cookbook_fx.chat import Message, UnparsedToolCall
from cookbook_fx.renderers import (
    ParsedResponse,
    ParseFailureKind,
    ParseTermination,
    classify_parse_failure,
)

CALL = UnparsedToolCall(raw_text="<tool_call>{</tool_call>", error="not JSON")


def response(termination, *unparsed):
    message = Message(role="assistant", content="Well", unparsed_tool_calls=unparsed)
    return ParsedResponse(message, termination)


def test_a_clean_end_without_failed_calls_is_no_failure():
    for termination in (ParseTermination.STOP_SEQUENCE, ParseTermination.EOS):
        assert classify_parse_failure(response(termination)) is None


def test_a_failed_call_is_a_failure_of_content():
    failure = classify_parse_failure(response(ParseTermination.STOP_SEQUENCE, CALL, CALL))
    assert failure.kind is ParseFailureKind.CONTENT
    assert failure.detail.count("not JSON: '<tool_call>{</tool_call>'") == 2


def test_a_broken_end_outweighs_failed_calls():
    failure = classify_parse_failure(response(ParseTermination.MALFORMED, CALL))
    assert failure.kind is ParseFailureKind.STRUCTURAL
    assert "'Well'" in failure.detail


def test_the_detail_is_bounded():
    long = UnparsedToolCall(raw_text="x" * 50_000, error="not JSON")
    failure = classify_parse_failure(response(ParseTermination.EOS, long))
    assert len(failure.detail) == 16384
