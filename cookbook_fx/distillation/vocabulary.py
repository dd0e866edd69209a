"""Whether a student's tokens mean the same to its teacher."""

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.tokens import Tokenizer


def check_same_vocabulary(
    student: Tokenizer, teacher: Tokenizer, *, student_name: str, teacher_name: str
) -> None:
    """Refuses a teacher that reads other text where the student wrote a token.

    A teacher judges the student's tokens by their ids, so each id must be the same token to both.
    The teacher may have more, which the student never writes.

    Args:
        student: its tokenizer.
        teacher: the same of the teacher.
        student_name: for the message.
        teacher_name: the same.

    Raises:
        ConfigurationError: a token of the student is missing or has another id; with the first.
    """
    own = student.backend_tokenizer.get_vocab(with_added_tokens=True)
    others = teacher.backend_tokenizer.get_vocab(with_added_tokens=True)
    strange = {token: number for token, number in own.items() if others.get(token) != number}
    if not strange:
        return
    token, number = min(strange.items(), key=lambda item: item[1])
    theirs = teacher.backend_tokenizer.id_to_token(number)
    read = "nothing at all" if theirs is None else repr(theirs)
    raise ConfigurationError(
        f"the teacher {teacher_name} cannot judge what {student_name} writes, for they have "
        f"different vocabularies: {len(strange)} of the student's {len(own)} tokens are other ones "
        f"to the teacher, such as {number}, which is {token!r} and which the teacher reads as "
        f"{read}; choose a teacher with the student's tokenizer, commonly one of its family, or "
        "train on texts that the teacher writes"
    )
