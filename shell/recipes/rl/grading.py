"""Whether two answers to a mathematical question say the same.

Answers are read as expressions and compared by value; where one is no expression, as texts. Either
way it is quick, however an answer is written: nothing is searched for or simplified.
"""

import cmath
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NamedTuple

# Longer answers are compared as texts, so that no number and no nesting is without end.
_LONGEST_EXPRESSION = 400
_MOST_BITS = 4096
_TOLERANCE = 1e-9
_POINTS = 3

Number = Fraction | complex


def final_answer(text: str) -> str | None:
    """The answer that a solution ends in; None if it names none.

    That is what stands in its last `\\boxed{}`, or else on its last line that has a `####`, after
    it.
    """
    boxed = extract_boxed(text)
    if boxed is not None:
        return boxed
    _, mark, rest = text.rpartition("####")
    line = rest.split("\n", 1)[0].strip().removeprefix(":").strip()
    return line if mark and line else None


def extract_boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{}` or `\\fbox{}` of a text; None if there is none.

    Braces within it may nest; where one is never closed, there is no answer. `\\boxed 7` means 7.
    """
    found = list(re.finditer(r"\\(?:boxed|fbox)(?![A-Za-z])\s*", text))
    if not found:
        return None
    begin = found[-1].end()
    if not text.startswith("{", begin):
        word = re.match(r"[^\s$]+", text[begin:])
        return word.group() if word else None
    depth = 0
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin + 1 : place].strip()
    return None


def last_integer(text: str) -> int | None:
    """The last integer that a text names, thousands separated or not; None if it names none."""
    # No more digits than Python turns into a number.
    found = re.findall(r"-?\d{1,4000}", text.replace(",", ""))
    return int(found[-1]) if found else None


def same_answer(given: str, reference: str) -> bool:
    """Whether an answer says the same as the right one.

    Numbers are compared by value, whether written as decimals, fractions, mixed numbers, powers or
    roots, and apart from currency, percent signs, degrees and units; expressions with variables by
    their values at a few points; tuples and intervals part by part, sets and lists in any order.
    All else must be the same text, but for spaces, case and LaTeX's layout.

    Args:
        given: what a model answered; LaTeX or plain.
        reference: the right answer.
    """
    if max(len(given), len(reference)) > _LONGEST_EXPRESSION:
        return _same_text(given, reference)
    given, reference = _without_name(_plain(given), _plain(reference))
    if _same_text(given, reference):
        return bool(reference)
    ours, theirs = _collection(given), _collection(reference)
    if ours is None or theirs is None:
        return ours is theirs and _same_value(given, reference)
    return ours.brackets == theirs.brackets and _same_parts(ours, theirs)


def solves(solution: str, reference: str) -> bool:
    """Whether the answer that a solution ends in is the right one."""
    answer = final_answer(solution)
    return answer is not None and same_answer(answer, reference)


_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|[bB]igg?)(?![A-Za-z])|\\[!,;: ]|~|\\?[$€£]|\\(?=%)"
)
_TEXT = r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}"
_WORD = r"[A-Za-z]{2,}"
_UNIT = re.compile(
    rf"(?<=[\d}}])\s*(?:%|\^\s*(?:\\circ|\{{\s*\\circ\s*\}})|°"
    rf"|(?:{_TEXT}|{_WORD}(?:\s+{_WORD}){{0,2}})(?:\^\{{?[23]\}}?)?)$"
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,])")
_MIXED = re.compile(
    r"(?<![\d./^])(\d+)(?:\s+(\d+)\s*/\s*(\d+)|\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\})(?![\d/])"
)
_SPELLINGS = {
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\lbrace": "\\{",
    "\\rbrace": "\\}", "\\leq": "\\le", "\\geq": "\\ge", "\\infty": "∞", "\\times": "*",
    "\\cdot": "*", "\\div": "/", "\\pi": "π", "−": "-", "–": "-", "×": "*", "·": "*", "÷": "/",
    "**": "^",
}  # fmt: skip


def _plain(answer: str) -> str:
    """An answer without LaTeX's layout, currency, unit and the separators of thousands."""
    answer = _LAYOUT.sub(" ", answer)
    for spelling, usual in _SPELLINGS.items():
        answer = answer.replace(spelling, usual)
    answer = re.sub(r"(?<![A-Za-z])pi(?![A-Za-z])", "π", answer).strip().rstrip(".").strip()
    answer = re.sub(_TEXT, r" \1 ", _UNIT.sub("", answer)).strip()
    # In brackets, a comma separates the parts.
    if not answer.startswith(("(", "[", "{", "\\{")):
        answer = _THOUSANDS.sub(lambda found: re.sub(r"[,{}]", "", found.group()), answer)
    return _MIXED.sub(r"(\1+\2\4/\3\5)", answer)


def _without_name(given: str, reference: str) -> tuple[str, str]:
    """Both answers without "x =", unless they name different things."""
    parts = [re.fullmatch(r"\s*([A-Za-z])\s*=([^=]*)", answer) for answer in (given, reference)]
    names = {part.group(1) for part in parts if part is not None}
    if len(names) > 1:
        return given, reference
    return tuple(
        answer if part is None else part.group(2).strip()
        for part, answer in zip(parts, (given, reference), strict=True)
    )


def _same_text(given: str, reference: str) -> bool:
    return _compact(given) == _compact(reference)


def _compact(text: str) -> str:
    return "".join(text.split()).casefold()


class _Collection(NamedTuple):
    """A tuple, interval, set or list: its brackets, "" for a list, and what is between commas."""

    brackets: str
    parts: tuple[str, ...]


_PAIRS = {("(", ")"): "()", ("[", "]"): "[]", ("(", "]"): "(]", ("[", ")"): "[)"}
_ORDERLESS = ("{}", "")


def _collection(answer: str) -> _Collection | None:
    """The parts of an answer that has several, or stands in braces."""
    for opening, closing in (("\\{", "\\}"), ("{", "}")):
        if answer.startswith(opening) and answer.endswith(closing):
            inner = answer[len(opening) : len(answer) - len(closing)]
            return _Collection("{}", _split(inner))
    brackets = _PAIRS.get((answer[:1], answer[-1:]))
    parts = () if brackets is None else _split(answer[1:-1])
    # "(1, 2), (3, 4)" begins and ends with brackets that do not belong together.
    if brackets is None or any(_depth(part) != 0 for part in parts):
        brackets, parts = "", _split(answer)
    return _Collection(brackets, parts) if len(parts) > 1 else None


def _split(text: str) -> tuple[str, ...]:
    """What stands between the commas that are in no brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += _DEEPER.get(character, 0)
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return tuple(part.strip() for part in parts)


_DEEPER = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


def _depth(text: str) -> int:
    return sum(_DEEPER.get(character, 0) for character in text)


def _same_parts(given: _Collection, reference: _Collection) -> bool:
    if len(given.parts) != len(reference.parts):
        return False
    if given.brackets not in _ORDERLESS:
        return all(map(same_answer, given.parts, reference.parts))
    left = list(reference.parts)
    for part in given.parts:
        match = next((place for place, other in enumerate(left) if same_answer(part, other)), None)
        if match is None:
            return False
        del left[match]
    return True


class _Unreadable(ValueError):
    """A text that is no expression."""


def _same_value(given: str, reference: str) -> bool:
    """Whether both are expressions that come to the same wherever their variables stand."""
    try:
        return all(
            _close(_evaluate(given, point), _evaluate(reference, point)) for point in range(_POINTS)
        )
    except (_Unreadable, ArithmeticError, RecursionError):
        return False


def _close(left: Number, right: Number) -> bool:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    left, right = complex(left), complex(right)
    return abs(left - right) <= _TOLERANCE * max(abs(left), abs(right))


def _evaluate(text: str, point: int) -> Number:
    """What an expression comes to at one of a few points.

    Raises:
        _Unreadable: it is no expression.
        ArithmeticError: it comes to nothing there, or to too much.
    """
    reader = _Reader(text, point=point)
    number = reader.sum()
    if reader.peek():
        raise _Unreadable(f"{reader.peek()!r} is left over")
    if isinstance(number, complex) and not cmath.isfinite(number):
        raise OverflowError("no finite number")
    return number


_TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|\\[A-Za-z]+|[A-Za-z]+|[-+*/^(){}\[\]|π!])")
_FUNCTIONS: Mapping[str, Callable[[complex], complex]] = {
    "sqrt": cmath.sqrt, "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "ln": cmath.log,
    "log": cmath.log, "exp": cmath.exp,
}  # fmt: skip
_CONSTANTS: Mapping[str, Number] = {"π": complex(math.pi), "e": complex(math.e), "i": 1j}
_CLOSING = {"(": ")", "{": "}", "[": "]", "|": "|"}


class _Reader:
    """Reads an expression from left to right and does what it says, at one point."""

    def __init__(self, text: str, *, point: int) -> None:
        self._tokens = _tokens(text)
        self._place = 0
        self._point = point

    def peek(self) -> str:
        """The next token; empty at the end."""
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def sum(self) -> Number:
        """Terms, added and subtracted."""
        total = self._product()
        while self.peek() in ("+", "-"):
            sign = 1 if self._next() == "+" else -1
            total = total + sign * self._product()
        return total

    def _product(self) -> Number:
        """Factors, multiplied and divided; what only stands side by side is multiplied."""
        product = self._signed()
        while (token := self.peek()) and token not in ("+", "-", ")", "}", "]", "|"):
            if token == "/":
                self._next()
                product = product / self._signed()
            elif token == "*":
                self._next()
                product = product * self._signed()
            elif token[0].isdigit() or token[0] == ".":
                raise _Unreadable("two numbers side by side")
            else:
                product = product * self._power()
        return product

    def _signed(self) -> Number:
        if self.peek() in ("+", "-"):
            return self._signed() if self._next() == "+" else -self._signed()
        return self._power()

    def _power(self) -> Number:
        base = self._atom()
        if self.peek() == "!":
            self._next()
            base = _factorial(base)
        if self.peek() != "^":
            return base
        self._next()
        return _power(base, self._signed())

    def _atom(self) -> Number:
        token = self._next()
        if token[0].isdigit() or token[0] == ".":
            return Fraction(token)
        if token in _CLOSING:
            return self._rest_of_brackets(token)
        name = token.removeprefix("\\")
        if token == "\\frac":
            over = self._argument()
            return over / self._argument()
        if name in _FUNCTIONS:
            return self._function(name)
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if len(token) == 1 and token.isalpha():
            return _value_of(token, self._point)
        raise _Unreadable(f"{token!r} is nothing to count with")

    def _function(self, name: str) -> Number:
        if name == "sqrt" and self.peek() == "[":
            self._next()
            root = self._rest_of_brackets("[")
            return _power(self._argument(), 1 / root)
        # \\sqrt2x is a root times x, but sin 2^x is the sine of a power.
        argument = self._argument() if name == "sqrt" else self._power()
        return _FUNCTIONS[name](complex(argument))

    def _argument(self) -> Number:
        """What a command of LaTeX is about: a group, or one letter or digit."""
        token = self.peek()
        if token[:1].isdigit() and len(token) > 1:
            # \frac12 is one half.
            self._tokens[self._place] = token[1:]
            return Fraction(token[0])
        return self._atom()

    def _rest_of_brackets(self, opening: str) -> Number:
        number = self.sum()
        if self._next() != _CLOSING[opening]:
            raise _Unreadable(f"{opening!r} is not closed")
        return complex(abs(number)) if opening == "|" else number

    def _next(self) -> str:
        token = self.peek()
        if not token:
            raise _Unreadable("it ends too soon")
        self._place += 1
        return token


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    place = 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None:
            raise _Unreadable(f"{text[place:]!r} is no expression")
        token, place = found.group(1), found.end()
        # Two letters are a product, more are a word.
        is_product = token.isalpha() and len(token) == 2 and token not in _FUNCTIONS
        tokens.extend(token if is_product else (token,))
    return tokens


def _power(base: Number, exponent: Number) -> Number:
    """Exact where it can be written down in a few bits."""
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent.numerator) <= _MOST_BITS:
            return base**exponent.numerator
    return complex(base) ** complex(exponent)


def _factorial(base: Number) -> Fraction:
    if not isinstance(base, Fraction) or base.denominator != 1 or not 0 <= base < 100:
        raise _Unreadable("a factorial of anything but a small whole number")
    return Fraction(math.factorial(base.numerator))


def _value_of(variable: str, point: int) -> Fraction:
    """A positive number that stands in no simple relation to those of other variables."""
    return Fraction(1009 + 97 * ord(variable) ** 2 + 7919 * point, 1201 + 31 * ord(variable))
