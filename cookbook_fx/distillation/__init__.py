"""Learning from a teacher: what it is asked, what is made of its answers."""

from cookbook_fx.distillation.teaching import GroupReference as GroupReference
from cookbook_fx.distillation.teaching import JudgedBatch as JudgedBatch
from cookbook_fx.distillation.teaching import OwnPrompt as OwnPrompt
from cookbook_fx.distillation.teaching import TeacherKL as TeacherKL
from cookbook_fx.distillation.teaching import teacher_kl as teacher_kl
from cookbook_fx.distillation.teaching import teaching_objective as teaching_objective
