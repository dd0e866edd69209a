"""A teacher reads the student's tokens as what they are, or is refused."""

import copy

import pytest

from cookbook_fx.distillation import check_same_vocabulary
from cookbook_fx.errors import ConfigurationError
from tests.family_tokenizers import tiny_tokenizer


def check(student, teacher):
    check_same_vocabulary(student, teacher, student_name="pupil", teacher_name="master")


def test_the_same_tokens_and_more_are_fine():
    student = tiny_tokenizer("qwen3")
    teacher = copy.deepcopy(student)
    teacher.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    check(student, student)
    check(student, teacher)


def test_a_teacher_that_lacks_a_token_is_refused_by_name():
    teacher = tiny_tokenizer("qwen3")
    student = copy.deepcopy(teacher)
    student.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    number = student.convert_tokens_to_ids("<|more|>")
    told = rf"master cannot judge what pupil writes.*{number}, which is '<\|more\|>'.*nothing"
    with pytest.raises(ConfigurationError, match=told):
        check(student, teacher)


def test_the_same_number_for_another_token_is_refused():
    with pytest.raises(ConfigurationError, match="different vocabularies"):
        check(tiny_tokenizer("qwen3"), tiny_tokenizer("llama3"))
