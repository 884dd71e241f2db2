//! Elements moved, chosen or repeated, their values unchanged.

use super::{
    Class::Movement,
    OpSpec,
    Role::{Data, Parameter},
};

const MOVED: &[super::Role] = &[Data, Parameter];

pub(super) const OPS: &[OpSpec] = &[
    OpSpec::new("DepthToSpace", Movement, MOVED),
    OpSpec::new("Expand", Movement, MOVED),
    OpSpec::new("Flatten", Movement, MOVED),
    OpSpec::new("Gather", Movement, MOVED),
    OpSpec::new("MaxPool", Movement, MOVED),
    OpSpec::new("ReduceMax", Movement, MOVED),
    OpSpec::new("ReduceMin", Movement, MOVED),
    OpSpec::new("Reshape", Movement, MOVED),
    OpSpec::new("Resize", Movement, MOVED),
    OpSpec::new("Slice", Movement, MOVED),
    OpSpec::new("Split", Movement, MOVED),
    OpSpec::new("Squeeze", Movement, MOVED),
    OpSpec::new("Tile", Movement, MOVED),
    OpSpec::new("Transpose", Movement, MOVED),
    OpSpec::new("Unsqueeze", Movement, MOVED),
];
