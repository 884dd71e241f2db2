//! What a file says of a value in a second place.

use bytes::Bytes;

use super::Type;

/// A graph's lists of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InfoList {
    /// `input`
    Inputs,
    /// `output`
    Outputs,
    /// `value_info`
    ValueInfo,
}

/// A file may describe a value twice, as an output and in `value_info`, say. Where these differ, this is the other one;
/// it is good for as long as the value keeps its type.
#[derive(Debug, Clone)]
pub struct SaidOtherwise {
    /// The list that says so.
    pub list: InfoList,
    /// The type that the value has in the other lists.
    pub beside: Option<Type>,
    /// Its encoded `ValueInfoProto`.
    pub info: Bytes,
}
