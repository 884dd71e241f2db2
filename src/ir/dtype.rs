//! The element types of ONNX tensors.

use std::fmt;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $bits:literal;)*) => {
        /// The element type of a tensor, numbered as `TensorProto.DataType`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[repr(i32)]
        pub enum DType { $($(#[$doc])* $name = $number),* }

        impl DType {
            /// Every type, in the order of its number.
            pub const ALL: &'static [DType] = &[$(DType::$name),*];

            /// The type with this number in `TensorProto.DataType`.
            pub fn from_onnx(number: i32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// The number in `TensorProto.DataType`.
            pub fn to_onnx(self) -> i32 {
                self as i32
            }

            /// The name in ONNX's textual syntax.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// Bits an element takes in `raw_data`; 0 for strings.
            pub fn bits(self) -> usize {
                match self { $(Self::$name => $bits),* }
            }
        }
    };
}

dtypes! {
    /// IEEE 32 bit.
    Float = 1, "float", 32;
    /// Unsigned 8 bit.
    Uint8 = 2, "uint8", 8;
    /// Signed 8 bit.
    Int8 = 3, "int8", 8;
    /// Unsigned 16 bit.
    Uint16 = 4, "uint16", 16;
    /// Signed 16 bit.
    Int16 = 5, "int16", 16;
    /// Signed 32 bit.
    Int32 = 6, "int32", 32;
    /// Signed 64 bit.
    Int64 = 7, "int64", 64;
    /// Byte strings.
    String = 8, "string", 0;
    /// One byte, 0 or 1.
    Bool = 9, "bool", 8;
    /// IEEE 16 bit.
    Float16 = 10, "float16", 16;
    /// IEEE 64 bit.
    Double = 11, "double", 64;
    /// Unsigned 32 bit.
    Uint32 = 12, "uint32", 32;
    /// Unsigned 64 bit.
    Uint64 = 13, "uint64", 64;
    /// Two floats.
    Complex64 = 14, "complex64", 64;
    /// Two doubles.
    Complex128 = 15, "complex128", 128;
    /// The upper half of an IEEE 32 bit number.
    Bfloat16 = 16, "bfloat16", 16;
    /// 4 exponent, 3 mantissa bits, finite and NaN only.
    Float8E4M3FN = 17, "float8e4m3fn", 8;
    /// As above, no negative zero.
    Float8E4M3FNUZ = 18, "float8e4m3fnuz", 8;
    /// 5 exponent, 2 mantissa bits.
    Float8E5M2 = 19, "float8e5m2", 8;
    /// As above, no negative zero.
    Float8E5M2FNUZ = 20, "float8e5m2fnuz", 8;
    /// Unsigned 4 bit, two an octet.
    Uint4 = 21, "uint4", 4;
    /// Signed 4 bit, two an octet.
    Int4 = 22, "int4", 4;
    /// 2 exponent, 1 mantissa bits, two an octet.
    Float4E2M1 = 23, "float4e2m1", 4;
    /// A power of two.
    Float8E8M0 = 24, "float8e8m0", 8;
    /// Unsigned 2 bit, four an octet.
    Uint2 = 25, "uint2", 2;
    /// Signed 2 bit, four an octet.
    Int2 = 26, "int2", 2;
    /// 2 exponent, 3 mantissa bits.
    Float6E2M3 = 27, "float6e2m3", 6;
    /// 3 exponent, 2 mantissa bits.
    Float6E3M2 = 28, "float6e3m2", 6;
}

impl DType {
    /// Bytes that `count` elements take in `raw_data`; `None` if that is no number of this machine.
    pub fn byte_len(self, count: usize) -> Option<usize> {
        count.checked_mul(self.bits()).map(|bits| bits.div_ceil(8))
    }

    /// One of the floating point types that networks compute in (16, 32 or 64 bits).
    pub fn is_float(self) -> bool {
        matches!(self, Self::Float | Self::Float16 | Self::Bfloat16 | Self::Double)
    }

    /// An integer type of any width (not bool).
    pub fn is_integer(self) -> bool {
        use DType::*;
        matches!(self, Uint8 | Int8 | Uint16 | Int16 | Int32 | Int64 | Uint32 | Uint64 | Uint4 | Int4 | Uint2 | Int2)
    }
}

impl From<DType> for String {
    fn from(dtype: DType) -> Self {
        dtype.name().to_owned()
    }
}

impl TryFrom<String> for DType {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|d| d.name() == name);
        found.copied().ok_or_else(|| format!("{name:?} is no element type (such as uint8, int8, float)"))
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
