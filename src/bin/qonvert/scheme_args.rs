//! The flags that say how to quantize; shared by the subcommands that do.

use std::path::PathBuf;

use clap::Args;
use qonvert::{
    Error,
    calibrate::dataset::{Channels, Layout},
    config::{Config, FloatWeights, Format, Mode, Numbers, Precision, Rule, Size, StackTraces, share},
    files::{self, Files},
    ir::DType,
    scheme::Settings,
};

/// Flags win over the file, the file over the preset.
#[derive(Args)]
pub struct SchemeArgs {
    /// YAML file with presets, types and rules for single layers; `--dump-config` writes one to start from
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// What to start from: int8 (the default), int8-dynamic, int8-symmetric, int8-per-tensor, int8-reduce-range, int4, or
    /// a file
    #[arg(long, value_name = "NAME", help_heading = "Configuration")]
    pub preset: Option<String>,
    /// auto (the default): as static, but what costs too much of the answers stays float, and without data as dynamic;
    /// static: ranges of data come from calibration; dynamic: from the data themselves at run time; weight-only: data stay float,
    /// weights are stored in few bits; qat: from the quantizers that the model was trained with (auto and static take these, too,
    /// where there are any)
    #[arg(long, value_name = "MODE", value_parser = mode, help_heading = "Configuration")]
    pub mode: Option<Mode>,
    /// What mode auto may lose: of the right answers where the data have labels, else in terms of noise: 1% (the default) is
    /// 30 dB at each output, 0.1% is 50 dB; with --precision 10 dB more, and 0.1% is the default of fp16, 0.3% of bf16
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true, value_parser = share::parse, help_heading = "Configuration")]
    pub max_loss: Option<f64>,
    /// What runs the model: a name (onnxruntime-cpu) or a file
    #[arg(long, value_name = "NAME", help_heading = "Configuration")]
    pub target: Option<String>,
    /// How quantized operators are written: qdq (the default) or qoperator
    #[arg(long, value_name = "FORM", value_parser = format, help_heading = "Scheme")]
    pub format: Option<Format>,
    /// What kind of processor runs the model: vnni (the default), or avx2 for x86 CPUs without VNNI, whose sums of 8-bit
    /// products can saturate: weights that could are rounded so that they do not
    #[arg(long, value_name = "NAME", help_heading = "Configuration")]
    pub cpu: Option<String>,
    /// Write the whole configuration that is used, for --config
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub dump_config: Option<PathBuf>,

    /// The most samples to calibrate on, evenly spread over the data; 0 uses all
    #[arg(long, value_name = "N", help_heading = "Calibration", allow_negative_numbers = true, value_parser = whole)]
    pub samples: Option<usize>,
    /// How ranges are chosen: auto, min_max, moving_average, percentile, entropy or mse
    #[arg(long, value_name = "NAME", help_heading = "Calibration")]
    pub observer: Option<String>,
    /// Choose ranges by the model's answers, after the observer: of shares of each range the one with which rounding the value
    /// does least harm, if other samples confirm it
    #[arg(long, help_heading = "Calibration")]
    pub fit_ranges: bool,
    /// Observer percentile: how much of the numbers the range keeps, in percent
    #[arg(long, value_name = "P", help_heading = "Calibration", allow_negative_numbers = true, value_parser = number)]
    pub percentile: Option<f64>,

    /// Type of activations: uint8, int8, uint16 or int16
    #[arg(long, value_name = "TYPE", value_parser = dtype, help_heading = "Scheme")]
    pub activation_type: Option<DType>,
    /// Type of weights: int8 or uint8
    #[arg(long, value_name = "TYPE", value_parser = dtype, help_heading = "Scheme")]
    pub weight_type: Option<DType>,
    /// One scale for each weight instead of one for each output channel
    #[arg(long, help_heading = "Scheme")]
    pub per_tensor: bool,
    /// How weights are rounded: rtn (to the nearest codes), mse (with the scales that cost the outputs least) or adaround (up
    /// or down, as the outputs want it), the last two by calibration data; in few bits also hqq, awq and gptq (the default with data)
    #[arg(long, value_name = "NAME", help_heading = "Scheme")]
    pub weight_algorithm: Option<String>,
    /// Mode weight-only: bits of a weight: 8, 4 (the default), 2, or 1 (a sign times a scale)
    #[arg(long, value_name = "N", help_heading = "Weights in few bits")]
    pub bits: Option<usize>,
    /// Mode weight-only: weights are -1, 0 or 1 times a scale, in 2 bits
    #[arg(long, help_heading = "Weights in few bits", conflicts_with = "bits")]
    pub ternary: bool,
    /// Mode weight-only: weights that share a scale: 16, 32 (the default), 64, 128 or 256
    #[arg(long, value_name = "N", help_heading = "Weights in few bits")]
    pub block_size: Option<usize>,
    /// Mode weight-only: bits of tables that rows are gathered from: 8 (the default), 4 or 2
    #[arg(long, value_name = "N", help_heading = "Weights in few bits")]
    pub table_bits: Option<usize>,
    /// Mode weight-only: each layer gets the bits that it needs, and a weight this many on average, scales counted, as 4.5
    #[arg(long, value_name = "B", help_heading = "Weights in few bits", value_parser = number, conflicts_with_all = ["bits", "ternary", "table_bits"])]
    pub target_bits: Option<f64>,
    /// The same, so that the written model is at most this large: 40MB, or 20% of the original
    #[arg(long, value_name = "SIZE", help_heading = "Weights in few bits", conflicts_with_all = ["bits", "ternary", "table_bits", "target_bits"])]
    pub target_size: Option<Size>,
    /// Mode weight-only: no zero points, all blocks have 0 in the middle of their codes
    #[arg(long, help_heading = "Weights in few bits")]
    pub no_zero_points: bool,
    /// Mirror the ranges of activations around 0
    #[arg(long, help_heading = "Scheme")]
    pub symmetric: bool,
    /// Use 7 of 8 bits of all weights; for x86 CPUs without VNNI, --cpu avx2 does so only where it must
    #[arg(long, help_heading = "Scheme")]
    pub reduce_range: bool,
    /// Keep nodes in float: a name, a glob ("*/head/*") or a /regular expression/; may be given often
    #[arg(long, value_name = "GLOB", help_heading = "Scheme")]
    pub keep_float: Vec<String>,
    /// Quantize wherever there is an integer kernel, even where that makes the model slower; mode weight-only: store all weights
    /// in few bits, also those whose codes no kernel reads (they become float when the model is loaded)
    #[arg(long, help_heading = "Scheme")]
    pub everywhere: bool,
    /// Keep the weights of float nodes as they are, instead of storing them as int8
    #[arg(long, help_heading = "Scheme")]
    pub keep_float_weights: bool,
    /// Leave biases as they are, instead of correcting them for what rounding the weights shifts
    #[arg(long, help_heading = "Scheme")]
    pub no_bias_correction: bool,
    /// Even out weights that have one scale for all channels, between layers (cross-layer equalization); for --per-tensor
    #[arg(long, help_heading = "Scheme")]
    pub equalize: bool,
    /// Even out the channels of activations where what reads them gains by it, as SmoothQuant does
    #[arg(long, help_heading = "Scheme")]
    pub smooth: bool,
    /// Move biases that no Relu needs on to the next layer, where the range between gets narrower by it (Nagel et al. 2019)
    #[arg(long, help_heading = "Scheme")]
    pub absorb_biases: bool,
    /// Keep a Concat in float whose parts have very different ranges (boxes beside scores), where the answers gain by it
    #[arg(long, help_heading = "Scheme")]
    pub split_concats: bool,
    /// Keep the stack traces that PyTorch's exporter notes at every node
    #[arg(long, help_heading = "Scheme")]
    pub keep_stack_traces: bool,

    #[command(flatten)]
    pub image: ImageArgs,
}

/// How pictures become tensors.
#[derive(Args)]
#[command(next_help_heading = "Pictures as calibration data")]
pub struct ImageArgs {
    /// Size that pictures are brought to; the model's own where it is fixed
    #[arg(long, value_name = "WxH", value_parser = size)]
    pub image_size: Option<[usize; 2]>,
    /// Subtracted from pixels (which are 0 to 1): one number or one for each channel, as 0.485,0.456,0.406
    #[arg(long, value_name = "M", value_delimiter = ',', allow_negative_numbers = true)]
    pub mean: Option<Vec<f32>>,
    /// Pixels are divided by this after that: one number or one for each channel, as 0.229,0.224,0.225
    #[arg(long, value_name = "S", value_delimiter = ',')]
    pub std: Option<Vec<f32>>,
    /// Order of the axes: nchw or nhwc; the model's own where its shape shows it
    #[arg(long, value_name = "ORDER", value_parser = layout)]
    pub layout: Option<Layout>,
    /// Channels and their order: rgb, bgr or gray
    #[arg(long, value_name = "ORDER", value_parser = channels)]
    pub channels: Option<Channels>,
}

impl SchemeArgs {
    /// Preset, file and flags together.
    pub fn settings(&self, adjust: impl FnOnce(&mut Config)) -> anyhow::Result<Settings> {
        let mut config = Config::load(self.preset.as_deref(), self.config.as_deref())?;
        self.apply(&mut config);
        adjust(&mut config);
        if self.percentile.is_some() && !config.uses_observer("percentile") {
            let text = format!("--percentile has no effect: the observer is {}", config.activation.observer);
            return Err(Error::config(text).help("add --observer percentile, or leave --percentile out").into());
        }
        if let Some(flag) = self.idle_bits(&config) {
            let text = format!("{flag} has no effect: neither the mode nor a rule is weight-only");
            return Err(Error::config(text).help(format!("add --mode weight-only, or leave {flag} out")).into());
        }
        Ok(Settings::new(config)?)
    }

    /// A flag of weights in few bits where nothing has them.
    fn idle_bits(&self, config: &Config) -> Option<&'static str> {
        let given = [
            (self.bits.is_some(), "--bits"),
            (self.ternary, "--ternary"),
            (self.block_size.is_some(), "--block-size"),
            (self.table_bits.is_some(), "--table-bits"),
            (self.no_zero_points, "--no-zero-points"),
            (self.target_bits.is_some(), "--target-bits"),
            (self.target_size.is_some(), "--target-size"),
        ];
        let by_rule = config.rules.iter().any(|r| r.precision == Some(Precision::WeightOnly));
        let asked = config.mode == Mode::WeightOnly || by_rule;
        given.into_iter().find(|(given, _)| *given && !asked).map(|(_, flag)| flag)
    }

    /// The same for what is about codes, of data or of weights.
    pub fn code_settings(&self, adjust: impl FnOnce(&mut Config)) -> anyhow::Result<Settings> {
        let settings = self.settings(adjust)?;
        if settings.config.precision != Numbers::Int8 {
            let text = format!("precision is {}, but this is about integers", settings.config.precision.name());
            return Err(Error::config(text).help("leave precision out; `qonvert quantize` takes it").into());
        }
        Ok(settings)
    }

    /// The same for what is about data in integers alone.
    pub fn integer_settings(&self, adjust: impl FnOnce(&mut Config)) -> anyhow::Result<Settings> {
        let settings = self.code_settings(adjust)?;
        if settings.config.mode == Mode::WeightOnly {
            let text = "mode is weight-only, but this is about data in integers";
            return Err(Error::config(text).help("leave the mode out; `qonvert quantize` takes it").into());
        }
        Ok(settings)
    }

    /// The files that these flags name.
    pub fn files(&self) -> Files {
        let mut files = Files::default();
        self.config.iter().for_each(|path| files.read("--config", path));
        self.preset.iter().for_each(|path| files.read("--preset", path)); // a name is a file that is not there
        self.target.iter().for_each(|path| files.read("--target", path));
        self.dump_config.iter().for_each(|path| files.write("--dump-config", path));
        files
    }

    /// Writes the configuration to `--dump-config` if that is asked for.
    pub fn dump(&self, settings: &Settings) -> anyhow::Result<()> {
        if let Some(path) = &self.dump_config {
            files::write(path, "the configuration", settings.config.to_yaml()?.as_bytes())?;
        }
        Ok(())
    }

    fn apply(&self, config: &mut Config) {
        set(&mut config.target, self.target.clone());
        set(&mut config.format, self.format);
        config.cpu = self.cpu.clone().or(config.cpu.take());
        set(&mut config.mode, self.mode);
        config.max_loss = self.max_loss.or(config.max_loss);
        match self.samples {
            Some(0) => config.calibration.samples = None,
            Some(n) => config.calibration.samples = Some(n),
            None => {}
        }
        set(&mut config.activation.observer, self.observer.clone());
        set(&mut config.calibration.percentile, self.percentile);
        set(&mut config.activation.dtype, self.activation_type);
        set(&mut config.weight.dtype, self.weight_type);
        match config.mode {
            Mode::WeightOnly => set(&mut config.weight_only.algorithm, self.weight_algorithm.clone()),
            _ => set(&mut config.weight.algorithm, self.weight_algorithm.clone()),
        }
        set(&mut config.weight_only.bits, self.bits);
        config.weight_only.ternary |= self.ternary;
        set(&mut config.weight_only.block_size, self.block_size);
        set(&mut config.weight_only.table_bits, self.table_bits);
        config.weight_only.symmetric |= self.no_zero_points;
        config.weight_only.target_bits = self.target_bits.or(config.weight_only.target_bits);
        config.weight_only.target_size = self.target_size.or(config.weight_only.target_size);
        config.weight.per_channel &= !self.per_tensor;
        config.activation.symmetric |= self.symmetric;
        config.weight.reduce_range |= self.reduce_range;
        config.everywhere |= self.everywhere;
        if self.keep_float_weights {
            config.float_weights = FloatWeights::Keep;
        }
        config.bias_correction &= !self.no_bias_correction;
        config.equalize |= self.equalize;
        config.smooth |= self.smooth;
        config.absorb_biases |= self.absorb_biases;
        config.split_concats |= self.split_concats;
        config.fit_ranges |= self.fit_ranges;
        if self.keep_stack_traces {
            config.stack_traces = StackTraces::Keep;
        }
        config.rules.extend(self.keep_float.iter().map(Rule::keep_float));
        self.image.apply(config);
    }
}

impl ImageArgs {
    /// Whether any of these flags is there.
    pub fn is_given(&self) -> bool {
        let pixels = self.mean.is_some() || self.std.is_some();
        pixels || self.image_size.is_some() || self.layout.is_some() || self.channels.is_some()
    }

    /// Sets what is given.
    pub fn apply(&self, config: &mut Config) {
        let image = &mut config.calibration.image;
        image.size = self.image_size.or(image.size);
        set(&mut image.mean, self.mean.clone());
        set(&mut image.std, self.std.clone());
        image.layout = self.layout.or(image.layout);
        image.channels = self.channels.or(image.channels);
    }
}

fn set<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

/// A number in the words of a flag.
pub fn number(text: &str) -> Result<f64, String> {
    text.trim().parse().map_err(|_| "write a number, as 30 or 0.98".to_owned())
}

/// A whole number in the words of a flag.
pub fn whole(text: &str) -> Result<usize, String> {
    text.trim().parse().map_err(|_| "write a whole number, 0 or more".to_owned())
}

fn dtype(name: &str) -> Result<DType, String> {
    DType::try_from(name.to_owned())
}

/// A format of quantized models by its name.
pub fn format(name: &str) -> Result<Format, String> {
    match name.to_lowercase().as_str() {
        "qdq" => Ok(Format::Qdq),
        "qoperator" => Ok(Format::Qoperator),
        _ => Err("write qdq (QuantizeLinear and DequantizeLinear) or qoperator (QLinearConv and the like)".to_owned()),
    }
}

fn mode(name: &str) -> Result<Mode, String> {
    match name {
        "auto" => Ok(Mode::Auto),
        "static" => Ok(Mode::Static),
        "dynamic" => Ok(Mode::Dynamic),
        "weight-only" => Ok(Mode::WeightOnly),
        "qat" => Ok(Mode::Qat),
        _ => Err("write auto, static, dynamic, weight-only or qat".to_owned()),
    }
}

fn layout(name: &str) -> Result<Layout, String> {
    match name.to_lowercase().as_str() {
        "nchw" => Ok(Layout::Nchw),
        "nhwc" => Ok(Layout::Nhwc),
        _ => Err("write nchw (channels in front) or nhwc (channels last)".to_owned()),
    }
}

fn channels(name: &str) -> Result<Channels, String> {
    match name.to_lowercase().as_str() {
        "rgb" => Ok(Channels::Rgb),
        "bgr" => Ok(Channels::Bgr),
        "gray" | "grey" => Ok(Channels::Gray),
        _ => Err("write rgb, bgr or gray".to_owned()),
    }
}

fn size(text: &str) -> Result<[usize; 2], String> {
    let parse = |s: &str| s.trim().parse::<usize>().ok().filter(|&n| n > 0);
    let (w, h) = text.split_once(['x', 'X', ',']).unwrap_or((text, text));
    parse(w).zip(parse(h)).map(|(w, h)| [w, h]).ok_or_else(|| "write width and height in pixels, as 224x224".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("640x480"), Ok([640, 480]));
        assert_eq!(size("224"), Ok([224, 224]));
        for bad in ["", "0", "0x3", "axb", "224x", "-1x1"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
