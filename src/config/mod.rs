//! The configuration as written: presets, files and flags in one form.
//!
//! A file says only what differs from its preset, and a preset only what differs from `int8`. [`Config::load`] puts the
//! layers on top of each other; flags are set on the result. [`Config::to_yaml`] writes everything, and reading that
//! gives the same configuration again.

mod check;
pub mod duration;
mod float8;
mod halves;
mod load;
mod one_or_many;
mod rules;
pub mod share;
mod size;
pub mod suggest;
mod weight_only;
mod words;

use serde::{Deserialize, Serialize};

pub use halves::{IoTypes, Numbers};
pub use load::rules_yaml;
pub use rules::{Precision, Rule, RuleActivation, RuleWeight, Span};
pub use size::Size;
pub use weight_only::{AWQ, Others, RuleWeightOnly, WeightOnly};

use crate::{
    calibrate::{
        dataset::{Channels, ImageOptions, Layout},
        observers,
    },
    ir::DType,
    quant::{QuantTarget, Range},
    weights,
};

/// The whole configuration. `Default` is preset `int8`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The preset that this builds on: a name or a file. Gone once it is applied.
    #[serde(skip_serializing)]
    pub preset: Option<String>,
    /// The runtime to quantize for: a name or a file.
    pub target: String,
    /// The form in which quantized operators are written.
    pub format: Format,
    /// The target's processor to quantize for; the target's own if `null`.
    pub cpu: Option<String>,
    /// The numbers that the model computes in.
    pub precision: Numbers,
    /// With 16-bit floats: the types of inputs and outputs.
    pub io_types: IoTypes,
    /// Where the ranges of data come from.
    pub mode: Mode,
    /// How activations are quantized.
    pub activation: Activation,
    /// How weights are quantized.
    pub weight: Weight,
    /// Mode weight-only, or rules of that precision: how weights are stored.
    pub weight_only: WeightOnly,
    /// What mode auto, or 16-bit floats, may lose, as a share: of the right answers where the data have labels; else see
    /// [`Config::least_sqnr`]. As [`Numbers::usual_loss`] says if `null`.
    #[serde(deserialize_with = "share::read", serialize_with = "share::write")]
    pub max_loss: Option<f64>,
    /// How long mode auto may search for a better plan, as `90s`; as long as it takes if `null`. See [`duration`].
    #[serde(deserialize_with = "duration::read")]
    pub time_budget: Option<String>,
    /// Quantize wherever there is an integer kernel, even where conversions cost more than it gains.
    pub everywhere: bool,
    /// Measure in ONNX Runtime, and put back into float what does not gain on this machine.
    pub never_slower: bool,
    /// What becomes of the weights of nodes that stay float.
    pub float_weights: FloatWeights,
    /// Biases are corrected for what rounding the weights shifts.
    pub bias_correction: bool,
    /// Weights with one scale for all channels are evened out.
    pub equalize: bool,
    /// Channels of activations are evened out where that gains.
    pub smooth: bool,
    /// Biases that no clamp at 0 needs move on to the next layer, where ranges get narrower by it.
    pub absorb_biases: bool,
    /// Concats whose parts have very different ranges stay float where the answers gain by it.
    pub split_concats: bool,
    /// Ranges are chosen by what rounding each value does to the model's answers.
    pub fit_ranges: bool,
    /// How ranges are found.
    pub calibration: Calibration,
    /// How the written model is compared with the original.
    pub proof: Proof,
    /// What becomes of the stack traces that PyTorch's exporter notes at nodes.
    pub stack_traces: StackTraces,
    /// Weights go into a file of their own beside the model. Models over 2 GB always do so.
    pub external_data: bool,
    /// What single nodes or values shall have otherwise. Later rules win.
    pub rules: Vec<Rule>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: None,
            target: "onnxruntime-cpu".to_owned(),
            format: Format::Qdq,
            cpu: None,
            precision: Numbers::Int8,
            io_types: IoTypes::Keep,
            mode: Mode::Auto,
            max_loss: None,
            time_budget: None,
            activation: Activation::default(),
            weight: Weight::default(),
            weight_only: WeightOnly::default(),
            everywhere: false,
            never_slower: false,
            float_weights: FloatWeights::Int8,
            bias_correction: true,
            equalize: false,
            smooth: false,
            absorb_biases: false,
            split_concats: false,
            fit_ranges: false,
            calibration: Calibration::default(),
            proof: Proof::default(),
            stack_traces: StackTraces::Remove,
            external_data: false,
            rules: Vec::new(),
        }
    }
}

/// Where the ranges of data come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// From calibration data where there are some; what that harms too much is left in a better form. Without data, at run
    /// time.
    #[default]
    Auto,
    /// From calibration data.
    Static,
    /// From the data themselves, at run time.
    Dynamic,
    /// Data stay float; weights are stored in few bits, for kernels that read the codes.
    #[serde(rename = "weight-only")]
    WeightOnly,
    /// From the quantizers that the model was trained with.
    Qat,
}

/// How activations are quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Activation {
    /// Type of the codes: uint8, int8, uint16 or int16.
    pub dtype: DType,
    /// The range mirrored around 0.
    pub symmetric: bool,
    /// Half the codes only.
    pub reduce_range: bool,
    /// The calibration method that chooses ranges.
    pub observer: String,
}

impl Default for Activation {
    fn default() -> Self {
        let QuantTarget { dtype, symmetric, reduce_range } = QuantTarget::ACTIVATION;
        Self { dtype, symmetric, reduce_range, observer: observers::DEFAULT.to_owned() }
    }
}

impl Activation {
    /// As numbers take it.
    pub fn target(&self) -> QuantTarget {
        QuantTarget { dtype: self.dtype, symmetric: self.symmetric, reduce_range: self.reduce_range }
    }
}

/// How weights are quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Weight {
    /// Type of the codes: int8 or uint8.
    pub dtype: DType,
    /// Zero is the middle code.
    pub symmetric: bool,
    /// A scale for each output channel.
    pub per_channel: bool,
    /// Half the codes only.
    pub reduce_range: bool,
    /// How they are rounded.
    pub algorithm: String,
}

impl Default for Weight {
    fn default() -> Self {
        let QuantTarget { dtype, symmetric, reduce_range } = QuantTarget::WEIGHT;
        Self { dtype, symmetric, per_channel: true, reduce_range, algorithm: weights::DEFAULT.to_owned() }
    }
}

impl Weight {
    /// As numbers take it.
    pub fn target(&self) -> QuantTarget {
        QuantTarget { dtype: self.dtype, symmetric: self.symmetric, reduce_range: self.reduce_range }
    }
}

/// What becomes of the weights of nodes that stay float.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatWeights {
    /// They stay float.
    Keep,
    /// Stored as float16; the runtime makes them float again when it loads the file.
    Float16,
    /// Stored as int8; the runtime makes them float again when it loads the file.
    #[default]
    Int8,
}

impl FloatWeights {
    /// The type that they are stored in; `None` where they stay as they are.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::Keep => None,
            Self::Float16 => Some(DType::Float16),
            Self::Int8 => Some(DType::Int8),
        }
    }
}

/// The form in which quantized operators are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Float operators between QuantizeLinear and DequantizeLinear.
    #[default]
    Qdq,
    /// Integer operators, where the target has them.
    Qoperator,
}

impl Format {
    /// Its name in YAML and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qdq => "qdq",
            Self::Qoperator => "qoperator",
        }
    }
}

/// What becomes of the stack traces that PyTorch's exporter notes at nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StackTraces {
    /// They are left out.
    #[default]
    Remove,
    /// They stay.
    Keep,
}

/// How ranges are found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Calibration {
    /// The most samples to use, evenly spread over the data; all of them if `null`.
    pub samples: Option<usize>,
    /// Observer `percentile`: how much of the numbers the range keeps, in percent.
    pub percentile: f64,
    /// Observer `moving_average`: how far each sample pulls the range to its own, 0 to 1.
    pub averaging: f64,
    /// How pictures become tensors, where the data is a folder of pictures.
    pub image: Image,
}

impl Default for Calibration {
    fn default() -> Self {
        let observers::Options { percentile, averaging } = observers::Options::default();
        Self { samples: Some(512), percentile, averaging, image: Image::default() }
    }
}

impl Calibration {
    /// As observers take it.
    pub fn options(&self) -> observers::Options {
        observers::Options { percentile: self.percentile, averaging: self.averaging }
    }
}

/// How pictures become tensors: `(pixel / 255 - mean) / std`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    /// Width and height in pixels; the model's own if `null`.
    pub size: Option<[usize; 2]>,
    /// Subtracted from each channel: one number, or one for each.
    #[serde(deserialize_with = "one_or_many::numbers")]
    pub mean: Vec<f32>,
    /// Divides each channel: one number, or one for each.
    #[serde(deserialize_with = "one_or_many::numbers")]
    pub std: Vec<f32>,
    /// The order of the axes; the model's own if `null`.
    pub layout: Option<Layout>,
    /// The channels and their order; `null` is rgb, or gray for models with one channel.
    pub channels: Option<Channels>,
}

impl Default for Image {
    fn default() -> Self {
        Self { size: None, mean: vec![0.0], std: vec![1.0], layout: None, channels: None }
    }
}

impl Image {
    /// As the data's reader takes it.
    pub fn options(&self) -> ImageOptions {
        let Self { size, mean, std, layout, channels } = self.clone();
        ImageOptions { size: size.map(|[w, h]| (w, h)), mean, std, layout, channels }
    }
}

/// How the written model is compared with the original.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Proof {
    /// The most samples to compare on, of those kept back from calibration; 0 turns the comparison off.
    pub samples: usize,
    /// Gate: every output's SQNR must be at least this, dB.
    pub min_sqnr: Option<f64>,
    /// Gate: the share of equal top answers must be at least this, 0 to 1.
    pub min_agreement: Option<f64>,
    /// Gate: accuracy on the data's labels may drop by at most this, 0 to 1 (0.01 is one point).
    pub max_drop: Option<f64>,
    /// An output whose SQNR is under this counts as lost, dB.
    pub floor: f64,
}

impl Default for Proof {
    fn default() -> Self {
        Self { samples: 64, min_sqnr: None, min_agreement: None, max_drop: None, floor: 5.0 }
    }
}

/// A fixed range, written `[lo, hi]`.
pub(crate) fn range_of([lo, hi]: [f32; 2]) -> Range {
    Range::new(lo, hi)
}

/// The names of the built-in presets.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    load::PRESETS.iter().map(|(name, _)| *name)
}

/// The text of a built-in preset.
pub fn preset_text(name: &str) -> Option<&'static str> {
    load::PRESETS.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}
