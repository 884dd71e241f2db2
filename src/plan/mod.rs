//! What is done to each value and node: plain data that can be printed, saved as YAML, edited by hand, and fed back.
//!
//! Values go by their names and nodes by the name of their first output, both as in the model after the Prepare passes
//! (see [`named_values`] for names inside subgraphs).

mod absorb;
mod averages;
mod awq;
mod check;
mod decide;
mod factors;
mod few_bits;
mod float8;
mod fragile;
mod halves;
mod known;
mod learned;
mod packed;
mod saturation;
mod smooth;
mod spread;
mod weights;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

mod names;
mod regions;
mod store;
mod units;

pub use absorb::{ChannelShifts, Clamped, absorb};
pub use awq::{AwqTask, awq};
pub use decide::{AsUint8, Scheme, decide, dynamic_weight, learned_grid};
pub use factors::{ChannelFactors, TakenBy};
pub use few_bits::{
    BLOCK_SIZES, FewBits, check as check_few_bits, layout as few_bits_layout, weight_input, weight_of,
    weights_in_few_bits,
};
pub use float8::{Float8Node, Float8Task, NO_FLOAT8, decide_float8, float8_nodes};
pub use fragile::{fragile_weights, gated_products};
pub use halves::{Answers, FREE, ForAnswers, HalfNoise, HalfSource, HalfTask, Halves, decide_halves, half_values};
pub use known::{Known, KnownReads, layout, reads};
pub use learned::{Learned, LearnedWeight};
pub use names::named_values;
pub use packed::{PackedWeight, exactly as packed_exactly, pack_weights};
pub use regions::Regions;
pub(crate) use saturation::{is_depthwise, of_training as saturating_codes_of_training, sum_axes};
pub use smooth::{SAMPLES as SMOOTHING_SAMPLES, Smoothing, equalize, smooth};
pub use spread::{Cost, spread};
pub use store::store_float_weights;
pub use units::{Readings, Units, entry, form};

use crate::{
    calibrate::Means,
    error::{Error, Result},
    ir::DType,
    quant::params::QParams,
};

/// What such reasons begin with.
pub const FOR_THE_ANSWERS: &str = "for the sake of the answers";

/// Why a node stays float that would be faster in integers.
pub const FOR_ANSWERS: &str = "for the sake of the answers: rounding it, or what joins it to others, costs too much";

/// The whole plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The target that it was made for.
    pub target: String,
    /// The target's processor that it was made for, where that is not the target's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Values that are divided by a factor for each channel before anything else is done; the rest of the plan speaks of
    /// the model after that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub channel_factors: BTreeMap<String, ChannelFactors>,
    /// Values of whose channels the layer in front loses a number that the layers behind have in their biases; done after
    /// that, and the rest of the plan speaks of the model after it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absorbed_biases: BTreeMap<String, ChannelShifts>,
    /// Values that get a Q/DQ pair.
    pub activations: BTreeMap<String, Activation>,
    /// Every node of the main graph, and the nodes of subgraphs that have a kernel which quantizes its data at run time.
    pub nodes: BTreeMap<String, NodePlan>,
    /// Weights of float nodes that are stored in fewer bits and become float again when the runtime loads the file.
    #[serde(default)]
    pub stored_weights: BTreeMap<String, StoredWeight>,
    /// Weights of float nodes that are packed in bytes, and become float again when the runtime loads the file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub packed_weights: BTreeMap<String, PackedWeight>,
    /// Which 16-bit floats nodes compute in, or store their weights in, where the model is brought into them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halves: Option<Halves>,
    /// What layers with weights read, on average: their biases are corrected by it for what rounding the weights shifts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub input_means: BTreeMap<String, Means>,
}

/// How the weight of a float node is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredWeight {
    /// Type of the codes: int8, or float16 or bfloat16 for the numbers themselves, without scales.
    pub dtype: DType,
    /// There is a scale for each index of the axes from this one …
    pub first_axis: usize,
    /// … to this one.
    pub last_axis: usize,
    /// How it is rounded.
    #[serde(default = "weights::default_algorithm", skip_serializing_if = "weights::is_default_algorithm")]
    pub algorithm: String,
}

/// A quantized activation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activation {
    /// Type of the codes.
    pub dtype: DType,
    /// Real value of one step.
    pub scale: f32,
    /// Code of zero.
    pub zero_point: i32,
    /// The least and greatest code, where training used fewer than the type has: a Clip of the codes stands behind the
    /// QuantizeLinear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<[i32; 2]>,
    /// Who reads the quantized form.
    pub readers: Readers,
}

impl Activation {
    /// Scale, zero point and type.
    pub fn params(&self) -> QParams {
        QParams { scale: self.scale, zero_point: self.zero_point, dtype: self.dtype }
    }
}

/// Who reads the quantized form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Readers {
    /// Everyone, graph outputs too.
    All,
    /// Only nodes that compute with the codes: integer ones, and those in floats of 8 bits.
    Integer,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePlan {
    /// Its name, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its operator, for people.
    pub op: String,
    /// What becomes of it.
    pub becomes: Form,
    /// The integer kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// How its weight is quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
    /// Why it stays float.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its input is dequantized with a scale for each channel, all the same, so that the runtime leaves the node in float.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fenced: bool,
    /// How its weight is stored in few bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few_bits: Option<FewBits>,
}

impl NodePlan {
    /// A node of which only that is known.
    pub fn new(name: Option<String>, op: &str, becomes: Form) -> Self {
        let (kernel, weight, reason, few_bits) = (None, None, None, None);
        Self { name, op: op.to_owned(), becomes, kernel, weight, reason, fenced: false, few_bits }
    }

    /// The algorithm that its weight is rounded by.
    pub fn algorithm(&self) -> Option<&str> {
        let blocks = self.few_bits.as_ref().map(|f| &f.algorithm[..]);
        self.weight.as_ref().map(|w| &w.algorithm[..]).or(blocks)
    }
}

/// What becomes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// It computes in integers, on data quantized with ranges of the plan.
    Integer,
    /// It computes in integers, on data that its kernel quantizes at run time.
    Dynamic,
    /// It computes on float data, with a weight in few bits.
    #[serde(rename = "weight-only")]
    WeightOnly,
    /// It vanishes: the quantized value before it saturates where it cuts.
    Absorbed,
    /// It computes in 16-bit floats; see [`Plan::halves`].
    Half,
    /// It stands between conversions to and from floats of 8 bits, for runtimes that compute in these.
    Float8,
    /// It stays.
    Float,
}

/// How a weight is quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    /// Type of the codes.
    pub dtype: DType,
    /// The axis of the scales; one scale where there is none. Each direction of a recurrent layer has scales of its own
    /// either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axis: Option<usize>,
    /// Zero point in the middle of the codes.
    pub symmetric: bool,
    /// One bit less.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reduce_range: bool,
    /// Where sums of two neighbours' products could saturate: the axes that the products add along, in the order of their
    /// depth. Channels in which they would are spread over fewer codes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pair_axes: Vec<usize>,
    /// Codes and scales are those of the model's training, which are found in the model.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub learned: bool,
    /// How it is rounded.
    #[serde(default = "weights::default_algorithm", skip_serializing_if = "weights::is_default_algorithm")]
    pub algorithm: String,
}

impl Plan {
    /// The plan as YAML.
    pub fn to_yaml(&self) -> Result<String> {
        serde_yaml::to_string(self).map_err(|e| Error::bug("the plan cannot be written as YAML").source(e))
    }

    /// A plan from YAML; unknown keys are errors.
    pub fn from_yaml(text: &str) -> Result<Self> {
        serde_yaml::from_str(text).map_err(|e| Error::config(format!("the plan is not right: {e}")))
    }

    /// Rounds all weights by this algorithm that are rounded to the nearest codes.
    pub fn round_weights_by(&mut self, algorithm: &str) {
        let of_nodes = self.nodes.values_mut().filter_map(|n| n.weight.as_mut()).map(|w| &mut w.algorithm);
        let all = of_nodes.chain(self.stored_weights.values_mut().map(|s| &mut s.algorithm));
        all.filter(|name| weights::is_default_algorithm(name)).for_each(|name| algorithm.clone_into(name));
    }

    /// Rounds the weights of these nodes to the nearest codes.
    pub fn round_to_nearest(&mut self, which: impl Fn(&str) -> bool) {
        let those = self.nodes.iter_mut().filter(|(name, _)| which(name));
        those.filter_map(|(_, n)| n.weight.as_mut()).for_each(|w| w.algorithm = weights::default_algorithm());
    }

    /// What is done before anything else, in the Scale stage.
    pub fn of_channels(&self) -> Self {
        let (channel_factors, absorbed_biases) = (self.channel_factors.clone(), self.absorbed_biases.clone());
        Self { channel_factors, absorbed_biases, ..Self::default() }
    }

    /// How many nodes compute in integers.
    pub fn integer_nodes(&self) -> usize {
        self.nodes.values().filter(|n| matches!(n.becomes, Form::Integer | Form::Dynamic)).count()
    }

    /// Whether any node stands between floats of 8 bits.
    pub fn has_float8(&self) -> bool {
        self.nodes.values().any(|n| n.becomes == Form::Float8)
    }

    /// The algorithms that weights are rounded by.
    pub fn algorithms(&self) -> impl Iterator<Item = (&str, &str)> {
        let stored = self.stored_weights.iter().map(|(name, s)| (&name[..], &s.algorithm[..]));
        let nodes = self.nodes.iter().filter_map(|(name, n)| Some((&name[..], n.algorithm()?)));
        stored.chain(nodes)
    }
}
