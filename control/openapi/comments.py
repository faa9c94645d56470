"""Comments of proto files by what they are about; only a descriptor set with source information holds them."""

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

Path = tuple[int, ...]  # field numbers and indices, as SourceCodeInfo.Location.path has them

_MESSAGE = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER
_ENUM = FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER
_SERVICE = FileDescriptorProto.SERVICE_FIELD_NUMBER
_METHOD = 2  # in ServiceDescriptorProto
_VALUE = 2  # in EnumDescriptorProto


def comments(files: FileDescriptorSet) -> Mapping[str, str]:
    """The leading comment of each service, method, message, field, enum and value, by full name, on one line.

    A value is named behind its enum: "package.Enum.VALUE".
    """
    found: dict[str, str] = {}
    for file in files.file:
        texts = {tuple(each.path): _line(each.leading_comments) for each in file.source_code_info.location}
        found |= {name: texts[path] for name, path in _names(file) if texts.get(path)}
    return found


def _names(file: FileDescriptorProto) -> Iterator[tuple[str, Path]]:
    yield from _messages(file.message_type, file.package, (_MESSAGE,))
    yield from _enums(file.enum_type, file.package, (_ENUM,))
    for index, service in enumerate(file.service):
        name, path = f"{file.package}.{service.name}", (_SERVICE, index)
        yield name, path
        for number, method in enumerate(service.method):
            yield f"{name}.{method.name}", (*path, _METHOD, number)


def _messages(messages: Sequence[DescriptorProto], scope: str, within: Path) -> Iterator[tuple[str, Path]]:
    for index, message in enumerate(messages):
        name, path = f"{scope}.{message.name}", (*within, index)
        yield name, path
        for number, field in enumerate(message.field):
            yield f"{name}.{field.name}", (*path, DescriptorProto.FIELD_FIELD_NUMBER, number)
        yield from _messages(message.nested_type, name, (*path, DescriptorProto.NESTED_TYPE_FIELD_NUMBER))
        yield from _enums(message.enum_type, name, (*path, DescriptorProto.ENUM_TYPE_FIELD_NUMBER))


def _enums(enums: Sequence[EnumDescriptorProto], scope: str, within: Path) -> Iterator[tuple[str, Path]]:
    for index, enum in enumerate(enums):
        name, path = f"{scope}.{enum.name}", (*within, index)
        yield name, path
        for number, value in enumerate(enum.value):
            yield f"{name}.{value.name}", (*path, _VALUE, number)


def _line(comment: str) -> str:
    return " ".join(comment.split())
