"""What happened, as flat names for files and dashboards; token sequences, as text to look at."""

from cookbook_fx.reports.colorized import WEIGHTED_CSS as WEIGHTED_CSS
from cookbook_fx.reports.colorized import ExampleSection as ExampleSection
from cookbook_fx.reports.colorized import colorize_example as colorize_example
from cookbook_fx.reports.colorized import format_colorized as format_colorized
from cookbook_fx.reports.colorized import format_html as format_html
from cookbook_fx.reports.colorized import format_html_pieces as format_html_pieces
from cookbook_fx.reports.colorized import format_marked as format_marked
from cookbook_fx.reports.colorized import format_pieces as format_pieces
from cookbook_fx.reports.colorized import html_page as html_page
from cookbook_fx.reports.colorized import tokens_and_weights as tokens_and_weights
from cookbook_fx.reports.records import EvaluationReport as EvaluationReport
from cookbook_fx.reports.records import OptimizerReport as OptimizerReport
from cookbook_fx.reports.records import PolicyReport as PolicyReport
from cookbook_fx.reports.records import PreferenceEvaluationReport as PreferenceEvaluationReport
from cookbook_fx.reports.records import PreferenceStepReport as PreferenceStepReport
from cookbook_fx.reports.records import ReinforcementStepReport as ReinforcementStepReport
from cookbook_fx.reports.records import Report as Report
from cookbook_fx.reports.records import RolloutEvaluationReport as RolloutEvaluationReport
from cookbook_fx.reports.records import RolloutReport as RolloutReport
from cookbook_fx.reports.records import SupervisedStepReport as SupervisedStepReport
from cookbook_fx.reports.records import TeacherReport as TeacherReport
from cookbook_fx.reports.records import TimeReport as TimeReport
from cookbook_fx.reports.records import flatten as flatten
