# mypy: disable-error-code="type-arg"
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("hello", "welcome", "header", "chunk", "refusal", "goodbye", "renewed", "trust")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    RENEWED_FIELD_NUMBER: _ClassVar[int]
    TRUST_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    welcome: Welcome
    header: MessageHeader
    chunk: bytes
    refusal: Refusal
    goodbye: Goodbye
    renewed: Renewed
    trust: Trust
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., header: _Optional[_Union[MessageHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., renewed: _Optional[_Union[Renewed, _Mapping]] = ..., trust: _Optional[_Union[Trust, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "software")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    software: str
    def __init__(self, protocol: _Optional[int] = ..., software: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "software")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    software: str
    def __init__(self, protocol: _Optional[int] = ..., software: _Optional[str] = ...) -> None: ...

class MessageHeader(_message.Message):
    __slots__ = ("total_bytes", "sha256", "job_sha256", "message_type", "message_id", "reply_to")
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    JOB_SHA256_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    REPLY_TO_FIELD_NUMBER: _ClassVar[int]
    total_bytes: int
    sha256: bytes
    job_sha256: str
    message_type: str
    message_id: str
    reply_to: str
    def __init__(self, total_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ..., job_sha256: _Optional[str] = ..., message_type: _Optional[str] = ..., message_id: _Optional[str] = ..., reply_to: _Optional[str] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "words")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[Refusal.Reason]
        IDENTITY: _ClassVar[Refusal.Reason]
        ROSTER: _ClassVar[Refusal.Reason]
        BUSY: _ClassVar[Refusal.Reason]
        PROTOCOL: _ClassVar[Refusal.Reason]
        UNKNOWN_JOB: _ClassVar[Refusal.Reason]
    UNSPECIFIED: Refusal.Reason
    IDENTITY: Refusal.Reason
    ROSTER: Refusal.Reason
    BUSY: Refusal.Reason
    PROTOCOL: Refusal.Reason
    UNKNOWN_JOB: Refusal.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    reason: Refusal.Reason
    words: str
    def __init__(self, reason: _Optional[_Union[Refusal.Reason, str]] = ..., words: _Optional[str] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("words",)
    WORDS_FIELD_NUMBER: _ClassVar[int]
    words: str
    def __init__(self, words: _Optional[str] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("job_sha256",)
    JOB_SHA256_FIELD_NUMBER: _ClassVar[int]
    job_sha256: str
    def __init__(self, job_sha256: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr", "roots")
    CSR_FIELD_NUMBER: _ClassVar[int]
    ROOTS_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    roots: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, csr: _Optional[bytes] = ..., roots: _Optional[_Iterable[str]] = ...) -> None: ...

class Renewed(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ...) -> None: ...

class DocumentsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Trust(_message.Message):
    __slots__ = ("roster", "handover", "retirement")
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIELD_NUMBER: _ClassVar[int]
    RETIREMENT_FIELD_NUMBER: _ClassVar[int]
    roster: bytes
    handover: bytes
    retirement: bytes
    def __init__(self, roster: _Optional[bytes] = ..., handover: _Optional[bytes] = ..., retirement: _Optional[bytes] = ...) -> None: ...
