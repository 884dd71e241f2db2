//! Pictures as samples.

use std::path::{Path, PathBuf};

use image::{DynamicImage, imageops::FilterType};
use serde::{Deserialize, Serialize};

use super::{InputSpec, convert::convert};
use crate::{
    diagnostics::{Diagnostic, count as plural},
    error::{Error, Result},
    ir::{DType, Dim, Tensor},
};

/// Order of the dims of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Channels, rows, columns.
    Nchw,
    /// Rows, columns, channels.
    Nhwc,
}

/// What the channels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// One channel of brightness.
    Gray,
}

impl Channels {
    fn count(self) -> usize {
        if self == Self::Gray { 1 } else { 3 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Rgb => "rgb",
            Self::Bgr => "bgr",
            Self::Gray => "gray",
        }
    }
}

/// How pictures become numbers: resized, scaled by 1/255, then `(x - mean) / std` for each channel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageOptions {
    /// Width and height in pixels; from the input's shape where it is known.
    pub size: Option<(usize, usize)>,
    /// Mean of each channel, or one for all, after scaling; 0 where not given.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, or one for all, after scaling; 1 where not given.
    pub std: Vec<f32>,
    /// From the input's shape where it shows.
    pub layout: Option<Layout>,
    /// Gray for inputs of one channel, else red, green, blue.
    pub channels: Option<Channels>,
}

/// Numbers beyond this come of no normalisation that a model is trained with; raw pixels reach 255.
const FAR: f32 = 256.0;

impl ImageOptions {
    /// What looks wrong in numbers that normalise pictures.
    pub(super) fn diagnose(&self) -> Option<Diagnostic> {
        let or = |list: &[f32], i: usize, default: f32| match list {
            [] => default,
            [one] => *one,
            more => more.get(i).copied().unwrap_or(default),
        };
        let channels = 0..self.mean.len().max(self.std.len());
        let ends = channels.flat_map(|i| [0.0, 1.0].map(|p| (p - or(&self.mean, i, 0.0)) / or(&self.std, i, 1.0)));
        let (lo, hi) = ends.fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), x| (lo.min(x), hi.max(x)));
        let of_bytes = self.mean.iter().any(|m| m.abs() > 1.0) || self.std.iter().any(|&s| s > 2.0);
        if !of_bytes && -lo <= FAR && hi <= FAR {
            return None;
        }
        let text = format!("--mean and --std bring pixels to {lo:.3} to {hi:.3}");
        let help = if of_bytes {
            "they are for pixels from 0 to 1: divide numbers that are meant for 0 to 255 by 255"
        } else {
            "pixels are from 0 to 1 before they are normalised: compare with what the model was trained on"
        };
        Some(Diagnostic::warning("odd_normalisation", text).help(help))
    }

    /// Says so where options for pictures are set and there are none.
    pub(super) fn idle(&self) -> Option<Diagnostic> {
        let set = [
            ("--image-size", self.size.is_some()),
            ("--mean", self.mean.iter().any(|&m| m != 0.0)),
            ("--std", self.std.iter().any(|&s| s != 1.0)),
            ("--layout", self.layout.is_some()),
            ("--channels", self.channels.is_some()),
        ];
        let idle: Vec<&str> = set.iter().filter(|(_, set)| *set).map(|(flag, _)| *flag).collect();
        (!idle.is_empty()).then(|| {
            let text = format!("no effect of {}: the data is arrays, not pictures", idle.join(", "));
            Diagnostic::warning("settings_without_effect", text)
                .help("arrays are fed as they are: normalise them before")
        })
    }
}

/// Pictures of a folder, and what is made of them.
pub struct Images {
    paths: Vec<PathBuf>,
    width: usize,
    height: usize,
    layout: Layout,
    channels: Channels,
    mean: Vec<f32>,
    std: Vec<f32>,
    dtype: DType,
    batch: usize,
    /// Whether the input has a dim for the batch.
    batched: bool,
}

/// Whether the name is that of a picture in a format that is read here.
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
    ["jpg", "jpeg", "png", "bmp", "webp"].contains(&extension.as_str())
}

impl Images {
    /// Decides how the pictures fit the input.
    pub fn new(paths: Vec<PathBuf>, spec: &InputSpec, options: &ImageOptions) -> Result<Self> {
        Self::fit(paths, spec, options).map_err(|e| e.value(&spec.name))
    }

    fn fit(paths: Vec<PathBuf>, spec: &InputSpec, options: &ImageOptions) -> Result<Self> {
        let dims = spec.dims.clone().unwrap_or(vec![Dim::Unknown; 4]);
        let (batched, picture) = match dims.as_slice() {
            [_, picture @ ..] if picture.len() == 3 => (true, picture),
            picture if picture.len() == 3 => (false, picture),
            _ => {
                let text = format!("the input has {} dims; a picture has 3, a batch of them 4", dims.len());
                return Err(Error::data(text).help("give the data as .npz instead"));
            }
        };
        let known: Vec<Option<usize>> = picture.iter().map(Dim::known).collect();
        let is_count = |d: Option<usize>| matches!(d, Some(1 | 3));
        let layout = options.layout.unwrap_or(match is_count(known[2]) && !is_count(known[0]) {
            true => Layout::Nhwc,
            false => Layout::Nchw,
        });
        let (count, rows, columns) = match layout {
            Layout::Nchw => (known[0], known[1], known[2]),
            Layout::Nhwc => (known[2], known[0], known[1]),
        };
        let channels = options.channels.unwrap_or(if count == Some(1) { Channels::Gray } else { Channels::Rgb });
        if count.is_some_and(|c| c != channels.count()) {
            let text = format!(
                "the input has {}, {} pictures have {}",
                plural(count.unwrap_or(0), "channel"),
                channels.name(),
                channels.count()
            );
            return Err(Error::config(text).help("set --layout and --channels as the model needs them"));
        }
        let side = |given: Option<usize>, own: Option<usize>, what: &str| match (given, own) {
            (Some(given), Some(own)) if given != own => {
                Err(Error::config(format!("--image-size gives {what} {given}, the input has {own}")))
            }
            (given, own) => given.or(own).filter(|&n| n > 0 && n <= 1 << 16).ok_or_else(|| {
                Error::config(format!("the input does not say the {what} of a picture"))
                    .help("give --image-size WIDTHxHEIGHT")
            }),
        };
        let width = side(options.size.map(|s| s.0), columns, "width")?;
        let height = side(options.size.map(|s| s.1), rows, "height")?;
        let each = |given: &[f32], default: f32, what: &str| match given.len() {
            0 => Ok(vec![default; channels.count()]),
            1 => Ok(vec![given[0]; channels.count()]),
            n if n == channels.count() => Ok(given.to_vec()),
            n => {
                Err(Error::config(format!("{n} numbers for --{what}, the pictures have {} channels", channels.count())))
            }
        };
        let (mean, std) = (each(&options.mean, 0.0, "mean")?, each(&options.std, 1.0, "std")?);
        if mean.iter().any(|m| !m.is_finite()) || std.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            return Err(Error::config("--mean and --std must be finite, --std above 0"));
        }
        let plain = options.mean.is_empty() && options.std.is_empty();
        if !(spec.dtype.is_float() || spec.dtype.is_integer() && plain) {
            let text = format!("pictures cannot be normalised for an input of {}", spec.dtype);
            return Err(
                Error::config(text).help("leave out --mean and --std: integer inputs get the pixels as they are")
            );
        }
        let batch = if batched { dims[0].known().unwrap_or(1).max(1) } else { 1 };
        if paths.len() < batch {
            let text = format!("the input takes batches of {batch}, the data has {}", plural(paths.len(), "picture"));
            return Err(Error::data(text).help("give more, or export the model with a free batch size"));
        }
        Ok(Self { paths, width, height, layout, channels, mean, std, dtype: spec.dtype, batch, batched })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.paths.len() / self.batch
    }

    /// A sample as the input takes it.
    pub fn sample(&self, sample: usize) -> Result<Tensor> {
        let mut bytes = Vec::new();
        for path in &self.paths[sample * self.batch..(sample + 1) * self.batch] {
            let picture = image::ImageReader::open(path)
                .and_then(image::ImageReader::with_guessed_format)
                .map_err(|e| Error::io(path, "open the picture", e))?
                .decode()
                .map_err(|e| Error::data("this picture cannot be read").file(path).source(e))?;
            bytes.extend(self.numbers(&picture)?);
        }
        let (h, w, c) = (self.height, self.width, self.channels.count());
        let mut dims = if self.batched { vec![self.batch] } else { vec![] };
        dims.extend(if self.layout == Layout::Nchw { [c, h, w] } else { [h, w, c] });
        Tensor::new(self.dtype, dims, bytes)
    }

    /// The elements of one picture.
    fn numbers(&self, picture: &DynamicImage) -> Result<Vec<u8>> {
        let picture = picture.resize_exact(self.width as u32, self.height as u32, FilterType::Triangle);
        let mut pixels = match self.channels {
            Channels::Gray => picture.into_luma8().into_raw(),
            Channels::Rgb | Channels::Bgr => picture.into_rgb8().into_raw(),
        };
        if self.channels == Channels::Bgr {
            pixels.chunks_exact_mut(3).for_each(<[u8]>::reverse);
        }
        let count = self.channels.count();
        if self.layout == Layout::Nchw && count > 1 {
            let area = self.width * self.height;
            pixels = (0..count * area).map(|i| pixels[i % area * count + i / area]).collect();
        }
        if !self.dtype.is_float() {
            return convert(pixels, DType::Uint8, self.dtype);
        }
        let channel = |i: usize| if self.layout == Layout::Nchw { i / (self.width * self.height) } else { i % count };
        let number = |(i, &p): (usize, &u8)| (f32::from(p) / 255.0 - self.mean[channel(i)]) / self.std[channel(i)];
        let bytes = pixels.iter().enumerate().map(number).flat_map(f32::to_le_bytes).collect();
        convert(bytes, DType::Float, self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dims: &[i64], dtype: DType) -> InputSpec {
        InputSpec { name: "x".into(), dtype, dims: Some(dims.iter().map(|&d| Dim::Known(d)).collect()) }
    }

    fn picture(folder: &Path) -> PathBuf {
        let path = folder.join("a.png");
        image::RgbImage::from_fn(4, 2, |x, y| image::Rgb([x as u8 * 10, y as u8 * 100, 255])).save(&path).unwrap();
        path
    }

    #[test]
    fn layouts_channels_and_types() {
        let folder = tempfile::tempdir().unwrap();
        let paths = vec![picture(folder.path())];
        let sample = |dims: &[i64], dtype, options: &ImageOptions| {
            Images::new(paths.clone(), &spec(dims, dtype), options)?.sample(0)
        };
        let plain = ImageOptions::default();
        let t = sample(&[1, 3, 2, 4], DType::Float, &plain).unwrap();
        assert_eq!(t.dims(), [1, 3, 2, 4]);
        let v = t.to_f32().unwrap();
        assert_eq!((v[1], v[8 + 4], v[16]), (10.0 / 255.0, 100.0 / 255.0, 1.0));
        let bgr = ImageOptions { channels: Some(Channels::Bgr), mean: vec![0.5], std: vec![0.5], ..plain.clone() };
        let v = sample(&[-1, 2, 4, 3], DType::Float, &bgr).unwrap().to_f32().unwrap();
        assert_eq!(v[..3], [1.0, -1.0, -1.0]);
        let t = sample(&[2, 4, 3], DType::Uint8, &plain).unwrap();
        assert_eq!((t.dims(), t.to_i64().unwrap()[3]), (&[2, 4, 3][..], 10));
        assert_eq!(sample(&[1, 1, 2, 4], DType::Float16, &plain).unwrap().dtype(), DType::Float16);
        let sized = ImageOptions { size: Some((8, 6)), ..plain.clone() };
        assert_eq!(sample(&[-1, 3, -1, -1], DType::Float, &sized).unwrap().dims(), [1, 3, 6, 8]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let plain = ImageOptions::default();
        let one = || vec![PathBuf::from("a.png")];
        let new =
            |dims: &[i64], options: &ImageOptions| Images::new(one(), &spec(dims, DType::Float), options).map(|_| ());
        assert!(new(&[1, 3, -1, -1], &plain).unwrap_err().help_text().unwrap().contains("--image-size"));
        assert!(new(&[1, 10], &plain).is_err());
        assert!(new(&[1, 5, 8, 8], &plain).is_err());
        assert!(new(&[1, 3, 8, 8], &ImageOptions { size: Some((8, 9)), ..plain.clone() }).is_err());
        assert!(new(&[1, 3, 8, 8], &ImageOptions { mean: vec![0.1, 0.2], ..plain.clone() }).is_err());
        assert!(new(&[1, 3, 8, 8], &ImageOptions { std: vec![0.0], ..plain.clone() }).is_err());
        let few = new(&[4, 3, 8, 8], &plain).unwrap_err().to_string();
        assert!(few.contains("batches of 4, the data has 1 picture"), "{few}");
        let gray = ImageOptions { channels: Some(Channels::Gray), ..plain };
        let text = new(&[1, 3, 8, 8], &gray).unwrap_err().to_string();
        assert!(text.contains("the input has 3 channels, gray pictures have 1"), "{text}");
    }

    #[test]
    fn normalisation_that_looks_wrong_or_has_no_effect() {
        let of = |mean: &[f32], std: &[f32]| ImageOptions { mean: mean.into(), std: std.into(), ..Default::default() };
        for (mean, std, odd) in [
            (&[0.485, 0.456, 0.406][..], &[0.229, 0.224, 0.225][..], false),
            (&[0.0], &[1.0], false),
            (&[0.4, 0.4, 0.4], &[1.0 / 255.0], false),
            (&[123.675, 116.28, 103.53], &[58.395, 57.12, 57.375], true),
            (&[127.5], &[0.5], true),
            (&[0.5], &[0.001], true),
        ] {
            assert_eq!(of(mean, std).diagnose().is_some(), odd, "{mean:?} {std:?}");
        }
        assert!(of(&[0.0], &[1.0]).idle().is_none());
        let text = ImageOptions { layout: Some(Layout::Nhwc), ..of(&[0.5], &[1.0]) }.idle().unwrap().to_string();
        assert!(text.contains("no effect of --mean, --layout"), "{text}");
    }
}
