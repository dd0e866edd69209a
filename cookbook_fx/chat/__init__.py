"""Messages and conversations, and their form in a file."""

from cookbook_fx.chat.message import ROLES as ROLES
from cookbook_fx.chat.message import Conversation as Conversation
from cookbook_fx.chat.message import Message as Message
from cookbook_fx.chat.message import conversation_from_dict as conversation_from_dict
from cookbook_fx.chat.message import message_to_dict as message_to_dict
