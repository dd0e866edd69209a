"""Messages and conversations, and their form in a file."""

from cookbook_fx.chat.dicts import conversation_from_dict as conversation_from_dict
from cookbook_fx.chat.dicts import conversation_to_dict as conversation_to_dict
from cookbook_fx.chat.dicts import message_from_dict as message_from_dict
from cookbook_fx.chat.dicts import message_to_dict as message_to_dict
from cookbook_fx.chat.dicts import tool_from_dict as tool_from_dict
from cookbook_fx.chat.dicts import tool_to_dict as tool_to_dict
from cookbook_fx.chat.message import ROLES as ROLES
from cookbook_fx.chat.message import Conversation as Conversation
from cookbook_fx.chat.message import Message as Message
from cookbook_fx.chat.message import content_of as content_of
from cookbook_fx.chat.message import declaring_tools as declaring_tools
from cookbook_fx.chat.parts import ImagePart as ImagePart
from cookbook_fx.chat.parts import Part as Part
from cookbook_fx.chat.parts import TextPart as TextPart
from cookbook_fx.chat.parts import ThinkingPart as ThinkingPart
from cookbook_fx.chat.parts import ToolCall as ToolCall
from cookbook_fx.chat.parts import ToolSpec as ToolSpec
from cookbook_fx.chat.parts import UnparsedToolCall as UnparsedToolCall
from cookbook_fx.chat.parts import check_unicode as check_unicode
from cookbook_fx.chat.parts import parse_json as parse_json
