//! What several passes need: views of layers and clamps, writing constants, walking along values.

pub mod bounds;
pub mod clamp;
pub mod constants;
pub mod convert;
pub mod halved;
pub mod lazy;
pub mod linear;
pub mod pairs;
pub mod permute;
pub mod quantizer;
pub mod replace;
pub mod shapes;
pub mod spelled;
#[cfg(test)]
pub mod testing;
pub mod walk;
