"""A client of `swift deploy --plugin himtok`, here or elsewhere. Knows nothing of ms-swift, torch or models."""

from .mask_client import AnswerUpdate, ClientError, MaskClient, ServerUnreachableError

__all__ = ["AnswerUpdate", "ClientError", "MaskClient", "ServerUnreachableError"]
