"""TensorFlow's protobuf messages without TensorFlow: the part of its public .proto files that describes a model.

Field numbers: tensorflow/core/protobuf/{saved_model,meta_graph,saver,saved_object_graph,struct}.proto and
tensorflow/core/framework/{graph,node_def,attr_value,function,op_def,tensor,tensor_shape,types,versions}.proto. What is
left out here stays unknown bytes, which protobuf skips.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.excerpts import excerpt
from unified_backend.formats.wire import lean, mapped

__all__ = ["DATA_TYPES", "message_class", "read_message", "shape_of", "triton_type"]

# DataType in types.proto; a variable's reference type is 100 more, named with _REF.
_TYPE_NAMES = (
    *("INVALID", "FLOAT", "DOUBLE", "INT32", "UINT8", "INT16", "INT8", "STRING", "COMPLEX64", "INT64", "BOOL"),
    *("QINT8", "QUINT8", "QINT32", "BFLOAT16", "QINT16", "QUINT16", "UINT16", "COMPLEX128", "HALF", "RESOURCE"),
    *("VARIANT", "UINT32", "UINT64", "FLOAT8_E5M2", "FLOAT8_E4M3FN", "FLOAT8_E4M3FNUZ", "FLOAT8_E4M3B11FNUZ"),
    *("FLOAT8_E5M2FNUZ", "INT4", "UINT4", "INT2", "UINT2", "FLOAT4_E2M1FN"),
)
DATA_TYPES = {number: f"DT_{name}" for number, name in enumerate(_TYPE_NAMES)}
_TRITON = {
    **{"FLOAT": "FP32", "DOUBLE": "FP64", "HALF": "FP16", "BFLOAT16": "BF16", "STRING": "STRING", "BOOL": "BOOL"},
    **{name: name for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")},
    # A quantised tensor's bytes are those of the integer.
    **{f"Q{name}": name for name in ("INT8", "UINT8", "INT16", "UINT16", "INT32")},
}

# message: `number type name`, `*` in front of a repeated type, `?` in front of the members of a oneof.
_MESSAGES = """
SavedModel: 1 int64 saved_model_schema_version; 2 *MetaGraphDef meta_graphs
MetaGraphDef: 1 MetaInfoDef meta_info_def; 2 GraphDef graph_def; 3 SaverDef saver_def; \
    4 <string,CollectionDef> collection_def; 5 <string,SignatureDef> signature_def; 6 *AssetFileDef asset_file_def; \
    7 SavedObjectGraph object_graph_def
MetaInfoDef: 1 string meta_graph_version; 4 *string tags; 5 string tensorflow_version; \
    6 string tensorflow_git_version; 7 bool stripped_default_attrs; 8 <string,string> function_aliases
CollectionDef: 1 ?NodeList node_list; 2 ?BytesList bytes_list; 3 ?Int64List int64_list; 4 ?FloatList float_list
NodeList: 1 *string value
BytesList: 1 *bytes value
Int64List: 1 *int64 value
FloatList: 1 *float value
SignatureDef: 1 <string,TensorInfo> inputs; 2 <string,TensorInfo> outputs; 3 string method_name; \
    4 <string,TensorProto> defaults
TensorInfo: 1 ?string name; 4 ?CooSparse coo_sparse; 5 ?CompositeTensor composite_tensor; 2 DataType dtype; \
    3 TensorShapeProto tensor_shape
CooSparse: 1 string values_tensor_name; 2 string indices_tensor_name; 3 string dense_shape_tensor_name
CompositeTensor: 2 *TensorInfo components
AssetFileDef: 1 TensorInfo tensor_info; 2 string filename
SaverDef: 1 string filename_tensor_name; 2 string save_tensor_name; 3 string restore_op_name; 4 int32 max_to_keep; \
    5 bool sharded; 6 float keep_checkpoint_every_n_hours; 7 SaverVersion version
GraphDef: 1 *NodeDef node; 2 FunctionDefLibrary library; 3 int32 version; 4 VersionDef versions
VersionDef: 1 int32 producer; 2 int32 min_consumer; 3 *int32 bad_consumers
NodeDef: 1 string name; 2 string op; 3 *string input; 4 string device; 5 <string,AttrValue> attr
AttrValue: 1 ?ListValue list; 2 ?bytes s; 3 ?int64 i; 4 ?float f; 5 ?bool b; 6 ?DataType type; \
    7 ?TensorShapeProto shape; 8 ?TensorProto tensor; 9 ?string placeholder; 10 ?NameAttrList func
ListValue: 2 *bytes s; 3 *int64 i; 4 *float f; 5 *bool b; 6 *DataType type; 7 *TensorShapeProto shape; \
    8 *TensorProto tensor; 9 *NameAttrList func
NameAttrList: 1 string name; 2 <string,AttrValue> attr
TensorShapeProto: 2 *Dim dim; 3 bool unknown_rank
Dim: 1 int64 size; 2 string name
TensorProto: 1 DataType dtype; 2 TensorShapeProto tensor_shape; 3 int32 version_number; 4 bytes tensor_content; \
    5 *float float_val; 6 *double double_val; 7 *int32 int_val; 8 *bytes string_val; 10 *int64 int64_val; \
    11 *bool bool_val; 13 *int32 half_val; 16 *uint32 uint32_val; 17 *uint64 uint64_val
FunctionDefLibrary: 1 *FunctionDef function
FunctionDef: 1 OpDef signature; 3 *NodeDef node_def; 4 <string,string> ret; 5 <string,AttrValue> attr
OpDef: 1 string name; 2 *ArgDef input_arg; 3 *ArgDef output_arg; 17 bool is_stateful
ArgDef: 1 string name; 3 DataType type
SavedObjectGraph: 1 *SavedObject nodes; 2 <string,SavedConcreteFunction> concrete_functions
SavedObject: 1 *ObjectReference children; 6 ?SavedFunction function; \
    8 ?SavedBareConcreteFunction bare_concrete_function
ObjectReference: 1 int32 node_id; 2 string local_name
SavedFunction: 1 *string concrete_functions; 2 FunctionSpec function_spec
SavedBareConcreteFunction: 1 string concrete_function_name; 2 *string argument_keywords
FunctionSpec: 1 StructuredValue fullargspec; 2 bool is_method
SavedConcreteFunction: 3 StructuredValue canonicalized_input_signature; 4 StructuredValue output_signature
StructuredValue: 1 ?NoneValue none_value; 11 ?double float64_value; 12 ?sint64 int64_value; 13 ?string string_value; \
    14 ?bool bool_value; 31 ?TensorShapeProto tensor_shape_value; 32 ?DataType tensor_dtype_value; \
    33 ?TensorSpecProto tensor_spec_value; 34 ?TypeSpecProto type_spec_value; \
    35 ?TensorSpecProto bounded_tensor_spec_value; 51 ?StructuredList list_value; 52 ?StructuredList tuple_value; \
    53 ?DictValue dict_value; 54 ?NamedTupleValue named_tuple_value
NoneValue:
TensorSpecProto: 1 string name; 2 TensorShapeProto shape; 3 DataType dtype
TypeSpecProto: 3 string type_spec_class_name
StructuredList: 1 *StructuredValue values
DictValue: 1 <string,StructuredValue> fields
NamedTupleValue: 1 string name; 2 *PairValue values
PairValue: 1 string key; 2 StructuredValue value
"""

# What makes these files large: weights in constants, and what only TensorFlow's own loader needs.
_INSIDE = {
    "SavedModel": {2: "MetaGraphDef"},
    "MetaGraphDef": {1: "MetaInfoDef", 2: "GraphDef"},
    "GraphDef": {1: "NodeDef", 2: "FunctionDefLibrary"},
    "FunctionDefLibrary": {1: "FunctionDef"},
    "FunctionDef": {3: "NodeDef"},
    "NodeDef": {5: "attr"},
    "attr": {2: "AttrValue"},
    "AttrValue": {8: "TensorProto", 1: "ListValue"},
    "ListValue": {8: "TensorProto"},
}
_WITHOUT = {
    "MetaInfoDef": {2},  # stripped_op_list
    "GraphDef": {5},  # debug_info
    "NodeDef": {6, 7},  # experimental_debug_info, experimental_type
    "TensorProto": set(range(4, 19)),  # every field of values
}
_MOST_TEXT = 256 * 2**20  # bytes of a .pbtxt; protobuf's own parser reads some 10 MB of it a second


def triton_type(number: int) -> str | None:
    """Triton's name of a DataType, if it has one."""
    return _TRITON.get(DATA_TYPES.get(number % 100, "")[3:])


def shape_of(shape: Any) -> tuple[int | None, ...] | None:
    """A TensorShapeProto as `TensorSpec` has it: None for an open dimension, and for an unknown rank."""
    if shape.unknown_rank:
        return None
    return tuple(dim.size if dim.size >= 0 else None for dim in shape.dim)


def read_message(path: Path, name: str, text: bool, kind: str) -> Any:
    """The message in a file, without the weights of a large one.

    Args:
        name: of the message.
        text: it is in protobuf's text form.
        kind: what the file is, for messages (`GraphDef`).

    Raises:
        SourceError: it does not parse.
    """
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError

    message = message_class(name)()
    try:
        if text:
            if path.stat().st_size > _MOST_TEXT:
                raise ValueError(f"its text has more than {_MOST_TEXT // 2**20} MiB: save it in the binary form")
            return text_format.Parse(path.read_text("utf-8"), message, allow_unknown_field=True)
        with mapped(path) as data:
            message.ParseFromString(lean(data, name, _INSIDE, _WITHOUT))
        return message
    except (DecodeError, text_format.ParseError, ValueError, RecursionError) as error:
        raise SourceError(
            f"{path.name} is a damaged {kind} file",
            f"its protobuf message does not parse ({excerpt(error)})",
            "Save it again, or copy it again completely",
        ) from None


def message_class(name: str) -> Any:
    """The class of one of the messages."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"tensorflow.{name}"))


@functools.cache
def _pool() -> Any:
    """The messages' descriptors, made when first asked for: a pool of their own clashes with no TensorFlow's."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    file = descriptor_pb2.FileDescriptorProto(
        name="unified_backend/tensorflow.proto", package="tensorflow", syntax="proto3"
    )
    types = {**DATA_TYPES, **{number + 100: f"{label}_REF" for number, label in DATA_TYPES.items() if number}}
    for enum, values in (("DataType", types), ("SaverVersion", {0: "LEGACY", 1: "V1", 2: "V2"})):
        made = file.enum_type.add(name=enum)
        for number, label in values.items():
            made.value.add(name=label, number=number)
    for line in _MESSAGES.replace("\\\n", "").strip().splitlines():
        title, _, rows = line.partition(":")
        _add_message(file, title, rows)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _add_message(file: Any, title: str, rows: str) -> None:
    from google.protobuf import descriptor_pb2

    types = descriptor_pb2.FieldDescriptorProto
    message = file.message_type.add(name=title)

    def add(holder: Any, number: int, kind: str, name: str) -> Any:
        field = holder.field.add(name=name, number=number, label=types.LABEL_OPTIONAL)
        if hasattr(types, f"TYPE_{kind.upper()}"):
            field.type = getattr(types, f"TYPE_{kind.upper()}")
        else:
            field.type = types.TYPE_ENUM if kind in ("DataType", "SaverVersion") else types.TYPE_MESSAGE
            field.type_name = f".tensorflow.{kind}"
        return field

    for row in filter(str.strip, rows.split(";")):
        number, kind, name = row.split()
        if match := re.fullmatch(r"<(\w+),(\w+)>", kind):
            entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
            entry.options.map_entry = True
            add(entry, 1, match[1], "key")
            add(entry, 2, match[2], "value")
            kind = f"*{title}.{entry.name}"
        field = add(message, int(number), kind.lstrip("*?"), name)
        if kind.startswith("*"):
            field.label = types.LABEL_REPEATED
        elif kind.startswith("?"):
            if not message.oneof_decl:
                message.oneof_decl.add(name="value")
            field.oneof_index = 0
