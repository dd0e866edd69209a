"""Learning from a teacher: what it is asked, what is made of its answers."""

from cookbook_fx.distillation.prompts import prompt_from_dict as prompt_from_dict
from cookbook_fx.distillation.prompts import truncated_text as truncated_text
from cookbook_fx.distillation.soft_targets import TaughtExample as TaughtExample
from cookbook_fx.distillation.soft_targets import check_top_k as check_top_k
from cookbook_fx.distillation.soft_targets import soft_target_datum as soft_target_datum
from cookbook_fx.distillation.soft_targets import taught_examples as taught_examples
from cookbook_fx.distillation.teaching import GroupReference as GroupReference
from cookbook_fx.distillation.teaching import JudgedBatch as JudgedBatch
from cookbook_fx.distillation.teaching import OwnPrompt as OwnPrompt
from cookbook_fx.distillation.teaching import TeacherKL as TeacherKL
from cookbook_fx.distillation.teaching import teacher_kl as teacher_kl
from cookbook_fx.distillation.teaching import teaching_objective as teaching_objective
from cookbook_fx.distillation.vocabulary import check_same_vocabulary as check_same_vocabulary
