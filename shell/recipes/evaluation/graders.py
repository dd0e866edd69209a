"""Graders by name: pure functions from an answer's text and a reference to whether it is right."""

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from cookbook_fx.names import named
from shell.recipes.rl.grading import final_answer, same_answer

TextGrader = Callable[[str, Any], Any]
"""From an answer's text and the reference to whether it is right, or how right from 0 to 1."""


def exact_match(text: str, reference: str) -> bool:
    """Whether an answer is the reference, apart from white space around it.

    Example:
        >>> exact_match(" Paris\\n", "Paris"), exact_match("Paris.", "Paris")
        (True, False)
    """
    return text.strip() == reference.strip()


def contains(text: str, reference: str) -> bool:
    """Whether an answer holds the reference as words of its own, in any case.

    Example:
        >>> contains("It is Paris.", "paris"), contains("No comparison", "Paris")
        (True, False)
    """
    pattern = r"\s+".join(map(re.escape, reference.split()))
    return bool(pattern) and re.search(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE) is not None


# No more digits than anyone writes down; Python itself refuses more than thousands.
_NUMBER = re.compile(
    r"[-+−]?(?:\d{1,300}(?:,\d{3})*(?:\.\d{1,300})?|\.\d{1,300})(?:[eE][-+]?\d{1,3})?"
)


def number(text: str, reference: str) -> bool:
    """Whether the last number in an answer is the reference, thousands separated or not.

    Example:
        >>> number("First 3, so 1,250.0 in all.", "1250"), number("none", "1250")
        (True, False)
    """
    given, wanted = _last_number(text), _last_number(str(reference))
    return given is not None and wanted is not None and math.isclose(given, wanted, rel_tol=1e-9)


def math_answer(text: str, reference: str) -> bool:
    """Whether the answer that a solution ends in has the reference's value.

    It stands in the last `\\\\boxed{}`, after the last `####`, or else is the whole answer.

    Example:
        >>> math_answer("Half: #### 1/2", "0.5"), math_answer("0.5", "#### 1/2")
        (True, True)
    """
    given = final_answer(text)
    wanted = final_answer(reference)
    return same_answer(text if given is None else given, reference if wanted is None else wanted)


def regex(text: str, reference: str) -> bool:
    """Whether the reference, a regular expression, is found in an answer.

    Example:
        >>> regex("Paris, France", r"^Pari[sz]")
        True
    """
    return re.search(reference, text) is not None


def choice(text: str, reference: str) -> bool:
    """Whether an answer chooses the reference's letter: "(B)", "B.", "the answer is B".

    What stands after the last "answer" counts, or else what the answer begins with.

    Example:
        >>> choice("A is wrong. The answer is (B).", "B"), choice("B) Oslo", "B"), choice("Bo", "B")
        (True, True, False)
    """
    after = re.findall(r"answer\W+(?:is\W+)?(?:option\W+)?([A-Z])(?!\w)", text, re.IGNORECASE)
    begins = re.match(r"\W*([A-Z])(?!['\w])", text.strip())
    chosen = after[-1] if after else begins.group(1) if begins else None
    return chosen is not None and chosen.upper() == reference.strip().upper()


GRADERS: Mapping[str, TextGrader] = MappingProxyType(
    {
        "choice": choice,
        "contains": contains,
        "exact_match": exact_match,
        "math": math_answer,
        "number": number,
        "regex": regex,
    }
)


def get_grader(name: str) -> TextGrader:
    """The grader of this name, or a function of one's own, `package.module:function`.

    Raises:
        ConfigurationError: there is no such grader.
    """
    return named(name, GRADERS, what="a grader")


def graded_text(grader: TextGrader, text: str, reference: Any) -> Any:
    """What a grader says; of several references, what it says of the best.

    A function of one's own gets the reference as it is.
    """
    if grader not in GRADERS.values():
        return grader(text, reference)
    accepted = reference if isinstance(reference, list) else [reference]
    return max(grader(text, str(each)) for each in accepted)


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("−", "-")) if found else None
