"""Records of what happened to the flat names that files and dashboards know."""

from cookbook_fx.reports.records import EvaluationReport as EvaluationReport
from cookbook_fx.reports.records import OptimizerReport as OptimizerReport
from cookbook_fx.reports.records import PolicyReport as PolicyReport
from cookbook_fx.reports.records import SupervisedStepReport as SupervisedStepReport
from cookbook_fx.reports.records import TimeReport as TimeReport
from cookbook_fx.reports.records import flatten as flatten
