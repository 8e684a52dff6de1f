"""Tokens of kvfold 0.1.0's sampler, drawn one by one in NumPy: what a seed gave, it gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvfold.runtime.sampling.params import SamplingParams

VOCAB = 1500
PROMPT = (3, 1, 4, 1, 5)


@dataclass(frozen=True)
class Frozen:
    """Parameters, over flat or peaked rows, and for each seed the tokens after PROMPT."""

    params: SamplingParams
    peaked: bool
    tokens: dict[int, list[int]]


def make_row(step: int, peaked: bool) -> np.ndarray:
    """Logits float32 [VOCAB] of a step, in [-4, 4) or [-16, 16), by integer arithmetic alone."""
    odd = np.uint64((2 * step + 1) * 0x9E3779B97F4A7C15 % 2**64 | 1)
    mixed = np.arange(1, VOCAB + 1, dtype=np.uint64) * odd
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    flat = (mixed >> np.uint64(40)).astype(np.float32) / np.float32(1 << 21) - np.float32(4)
    return flat * flat * flat / np.float32(4) if peaked else flat


FROZEN = (
    Frozen(
        SamplingParams(temperature=1.0),
        False,
        {
            0: [956, 402, 47, 18, 1222, 1368, 910, 1109, 834, 1361],
            1: [786, 1431, 172, 1407, 532, 620, 1234, 693, 841, 39],
            2**40: [574, 925, 1490, 199, 1047, 714, 1465, 1100, 38, 196],
        },
    ),
    Frozen(
        SamplingParams(temperature=1.0),
        True,
        {
            0: [928, 456, 114, 14, 1244, 1379, 945, 1114, 926, 1304],
            1: [772, 1426, 195, 1309, 350, 905, 1268, 810, 926, 77],
            2**40: [446, 810, 1489, 30, 1002, 922, 1475, 1114, 129, 259],
        },
    ),
    Frozen(
        SamplingParams(temperature=0.8, top_p=0.95),
        False,
        {
            0: [759, 1201, 238, 139, 83, 994, 479, 12, 45, 682],
            1: [226, 106, 13, 1484, 1124, 1039, 504, 941, 901, 1304],
            2**40: [483, 282, 252, 526, 620, 1094, 505, 46, 1296, 397],
        },
    ),
    Frozen(
        SamplingParams(temperature=0.8, top_p=0.95),
        True,
        {
            0: [383, 1052, 195, 1202, 1076, 1451, 1490, 773, 663, 716],
            1: [1081, 691, 1173, 633, 193, 1214, 749, 1114, 663, 1036],
            2**40: [252, 578, 1190, 26, 192, 502, 128, 1135, 1158, 1036],
        },
    ),
    Frozen(
        SamplingParams(temperature=1.3, top_k=40),
        False,
        {
            0: [979, 476, 20, 9, 1244, 1379, 895, 1129, 926, 1249],
            1: [789, 1460, 195, 1309, 486, 741, 1259, 773, 926, 54],
            2**40: [532, 953, 1489, 139, 1076, 905, 1475, 1114, 129, 122],
        },
    ),
    Frozen(
        SamplingParams(temperature=1.3, top_k=40),
        True,
        {
            0: [871, 402, 66, 9, 1245, 1379, 930, 1114, 926, 1304],
            1: [772, 1438, 195, 1309, 350, 905, 1266, 810, 926, 76],
            2**40: [446, 810, 1489, 30, 1076, 922, 1490, 1114, 159, 228],
        },
    ),
    Frozen(
        SamplingParams(temperature=0.7, min_p=0.05),
        False,
        {
            0: [949, 402, 46, 14, 1222, 1372, 919, 1114, 841, 1348],
            1: [788, 1435, 166, 1404, 542, 635, 1233, 728, 845, 39],
            2**40: [575, 925, 1489, 177, 1050, 732, 1465, 1101, 43, 202],
        },
    ),
    Frozen(
        SamplingParams(temperature=0.7, min_p=0.05),
        True,
        {
            0: [871, 476, 149, 14, 1271, 1379, 945, 1114, 998, 1304],
            1: [772, 1426, 195, 1309, 333, 922, 1363, 890, 998, 104],
            2**40: [416, 805, 1488, 30, 864, 976, 1475, 1114, 159, 372],
        },
    ),
    Frozen(
        SamplingParams(temperature=0.9, top_k=50, top_p=0.9, min_p=0.02),
        False,
        {
            0: [532, 402, 1173, 1202, 901, 131, 466, 1129, 1327, 370],
            1: [1102, 1107, 238, 271, 635, 171, 500, 680, 1327, 594],
            2**40: [416, 1498, 171, 962, 823, 1142, 933, 435, 1158, 1045],
        },
    ),
    Frozen(
        SamplingParams(temperature=0.9, top_k=50, top_p=0.9, min_p=0.02),
        True,
        {
            0: [383, 1052, 195, 1202, 333, 72, 92, 1135, 926, 228],
            1: [1081, 1498, 1173, 55, 193, 1214, 540, 1114, 663, 1036],
            2**40: [252, 578, 1398, 26, 764, 502, 185, 1135, 1158, 1036],
        },
    ),
    Frozen(
        SamplingParams(temperature=0.0, repetition_penalty=1.3),
        False,
        {
            0: [1430, 476, 195, 1202, 158, 1379, 242, 1011, 1158, 1036],
        },
    ),
    Frozen(
        SamplingParams(temperature=0.0, repetition_penalty=1.3),
        True,
        {
            0: [1430, 476, 195, 1202, 158, 1379, 242, 1011, 1158, 1036],
        },
    ),
    Frozen(
        SamplingParams(temperature=1.1, top_p=0.7, repetition_penalty=1.2),
        False,
        {
            0: [1300, 1201, 238, 139, 6, 1196, 758, 652, 651, 505],
            1: [1492, 1298, 13, 608, 571, 1338, 65, 1473, 955, 1304],
            2**40: [182, 1458, 896, 526, 1283, 739, 96, 708, 1296, 397],
        },
    ),
    Frozen(
        SamplingParams(temperature=1.1, top_p=0.7, repetition_penalty=1.2),
        True,
        {
            0: [1122, 1052, 195, 1202, 848, 171, 92, 564, 874, 397],
            1: [351, 1157, 1173, 946, 193, 1214, 169, 1114, 874, 1036],
            2**40: [252, 402, 982, 26, 1271, 502, 749, 564, 1158, 594],
        },
    ),
    Frozen(
        SamplingParams(temperature=2.5, top_k=700, top_p=0.99),
        False,
        {
            0: [17, 216, 1278, 962, 1065, 459, 605, 1105, 86, 216],
            1: [1197, 194, 637, 945, 734, 919, 524, 768, 155, 372],
            2**40: [692, 912, 301, 323, 103, 1458, 251, 1407, 783, 393],
        },
    ),
    Frozen(
        SamplingParams(temperature=2.5, top_k=700, top_p=0.99),
        True,
        {
            0: [1065, 637, 1173, 1202, 1273, 1480, 476, 1210, 1428, 431],
            1: [132, 1292, 1376, 418, 848, 1446, 815, 1138, 1033, 594],
            2**40: [802, 1107, 1012, 888, 1146, 737, 1078, 838, 664, 536],
        },
    ),
)
