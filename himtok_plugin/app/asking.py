"""A question to the server, and its answer as it comes, in the state of a tab.

Contract: `ask_server` changes the turn and yields whenever there is more to show. Whatever goes wrong is a sentence in
the turn, so that the page goes on.
"""

from __future__ import annotations

from collections.abc import Iterator

from himtok_plugin.client import MaskClient, ServerUnreachableError

from .session import Conversation, Turn
from .uploads import SCREEN_SIDE


def ask_server(client: MaskClient, conversation: Conversation, turn: Turn) -> Iterator[None]:
    """Ask the turn's question, with all turns before it.

    Args:
        client: of the server.
        conversation: of the turn.
        turn: the last one, just started; it is finished in the end, also if the iterator is closed before.
    Yields:
        Nothing; the turn has changed.
    """
    try:
        updates = client.ask(
            conversation.messages(),
            [conversation.image.content],
            masks=conversation.region_masks(),
            previews="all",
            preview_side=SCREEN_SIDE,
        )
        for update in updates:
            turn.answer = update.text
            turn.is_cut = update.is_cut
            turn.unknown_words = list(update.unknown_words)
            for segment in update.segments[len(turn.masks) :]:
                conversation.add_mask(turn, segment)
            if update.preview is not None:
                turn.open_prefixes[len(update.preview["codes"])] = update.preview
            yield
    except GeneratorExit:
        turn.is_stopped = True
        raise
    except ServerUnreachableError as error:
        turn.error = f"The model is still loading, or its server has ended: ask again in a moment. ({error})"
    except ValueError as error:  # a ClientError is one
        turn.error = str(error)
    finally:
        turn.open_prefixes = {}
        turn.is_finished = True
    yield
