"""Operators of MNN's schema (MNN.fbs) by their numbers."""

from __future__ import annotations

__all__ = ["CONST", "CONVOLUTION_PARAMETER", "INPUT", "TRAINABLE", "operator_name"]

INPUT, CONST, TRAINABLE = 34, 11, 266
CONVOLUTION_PARAMETER = 9  # Convolution2D in the union of parameters

# In the order of the enumeration OpType, from the numbers that are given.
_NAMES = {
    0: "AbsVal QuantizedAdd ArgMax AsString InstanceNorm BatchToSpaceND Bias BinaryOp Bnll Cast Concat Const "
    "Convolution ConvolutionDepthwise Crop CropAndResize Cubic Deconvolution DeconvolutionDepthwise Dequantize "
    "DetectionOutput Dropout Eltwise ELU Unique Exp ExpandDims Fill Flatten FloorMod Gather GatherV2 Im2Seq "
    "InnerProduct Input Interp Log LRN LSTM MatMul MVN NonMaxSuppression NonMaxSuppressionV2 Normalize Pack Padding "
    "Permute Pooling Power PReLU PriorBox Proposal QuantizedAvgPool QuantizedBiasAdd QuantizedConcat "
    "QuantizedDepthwiseConv2D QuantizedLogistic QuantizedMatMul QuantizedMaxPool QuantizedRelu QuantizedRelu6 "
    "QuantizedReshape QuantizedSoftmax QuantizeMaxMin QuantizeV2 Range Rank ReduceJoin Reduction ReLU ReLU6 "
    "RequantizationRange Requantize Reshape Resize RNN ROIPooling Scale Selu Seq2Out Shape Sigmoid Size Slice SliceTf "
    "Softmax SpaceToBatchND SpatialProduct Split Segment Squeeze StridedSlice StringJoin StringSplit StringToNumber "
    "TanH TfQuantizedConv2D Threshold Tile TopKV2 Transpose UnaryOp Unpack Where Moments RNNSequenceGRU BatchMatMul "
    "Unsqueeze CosineSimilarity DepthToSpace SpaceToDepth ReverseSequence Pooling3D Convolution3D MatrixBandPart "
    "GatherND DetectionPostProcess UnravelIndex ScatterNd OneHot BroadcastTo Dilation2D",
    128: "Raster ConvertTensor ArgMin LinSpace RandomUniform TensorArray TensorArraySize TensorArrayRead "
    "TensorArrayWrite TensorArrayGather TensorArrayScatter TensorArraySplit TensorArrayConcat LSTMBlockCell Reverse",
    256: "Plugin Select ZerosLike Broastcast SetDiff1D ReluGrad Relu6Grad PoolGrad SoftmaxGrad Conv2DBackPropFilter "
    "TrainableParam BatchNorm ZeroGrad",
    512: "Extra ConvInt8 Int8ToFloat DepthwiseConvInt8 PoolInt8 FloatToInt8 EltwiseInt8",
    600: "While If",
    603: "LayerNorm GridSample",
}
_BY_NUMBER = {first + position: name for first, names in _NAMES.items() for position, name in enumerate(names.split())}


def operator_name(number: int) -> str:
    """The operator's name; of one that is newer than this table, its number."""
    return _BY_NUMBER.get(number, f"OP_{number}")
