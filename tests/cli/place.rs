//! A folder in which commands run.

use std::{fs, path::PathBuf, process::Command};

use crate::random::noise;
use ndarray::{Array, Array1, Array4};
use ndarray_npy::NpzWriter;
use qonvert::{ir::text, onnx_file};
use tempfile::TempDir;

/// A folder with a model and data, in which commands run.
pub struct Place(TempDir);

/// What a command did.
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Two convolutions and a classifier. The 1x1 convolution is large enough to gain from integers.
pub const MODEL: &str = r#"<ir_version: 8, opset_import: ["" : 17], producer_name: "test">
net (float[N,3,16,16] image) => (float[N,4] scores)
   <float[64,3,3,3] w1, float[64] b1, float[64,64,3,3] w2, float[64] b2, float[4,64] w3, float[4] b3> {
   [conv1] c1 = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
   [relu1] r1 = Relu (c1)
   [conv2] c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
   [relu2] r2 = Relu (c2)
   [pool] p = GlobalAveragePool (r2)
   [flat] f = Flatten (p)
   [head] s = Gemm <transB = 1> (f, w3, b3)
   [squash] scores = Tanh (s)
}"#;

impl Place {
    pub fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let mut filled = MODEL.to_owned();
        for (seed, (name, dims)) in
            [("w1", "64,3,3,3"), ("b1", "64"), ("w2", "64,64,3,3"), ("b2", "64"), ("w3", "4,64"), ("b3", "4")]
                .iter()
                .enumerate()
        {
            let count: usize = dims.split(',').map(|d| d.parse::<usize>().unwrap()).product();
            let scale = if name.starts_with('w') { 0.2 } else { 0.05 };
            let numbers: Vec<_> = (0..count).map(|i| format!("{:.4}", scale * noise(seed as u32, i))).collect();
            let declared = format!("float[{dims}] {name}");
            filled = filled.replacen(&declared, &format!("{declared} = {{{}}}", numbers.join(",")), 1);
        }
        onnx_file::write(&text::parse(&filled).unwrap(), &place.path("model.onnx"), Default::default()).unwrap();
        place.data("data.npz", "image", 40);
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn data(&self, file: &str, input: &str, samples: usize) {
        let image: Array4<f32> = Array::from_shape_fn((samples, 3, 16, 16), |(n, c, y, x)| {
            noise(99 + n as u32, (c * 16 + y) * 16 + x) + (n % 4) as f32 * 0.5
        });
        let labels: Array1<i64> = (0..samples as i64).map(|i| i % 4).collect();
        let mut npz = NpzWriter::new(fs::File::create(self.path(file)).unwrap());
        npz.add_array(input, &image).unwrap();
        npz.add_array("labels", &labels).unwrap();
        npz.finish().unwrap();
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Runs `qonvert` with these words.
    pub fn run(&self, line: &str) -> Done {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qonvert"));
        command.current_dir(self.0.path()).args(line.split_whitespace());
        for name in ["RUST_LOG", "COLUMNS", "NO_COLOR"] {
            command.env_remove(name);
        }
        let done = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Done { code: done.status.code().unwrap(), out: text(done.stdout), err: text(done.stderr) }
    }

    pub fn quantize(&self, more: &str) -> Done {
        self.run(&format!("quantize model.onnx -o out.onnx --calibration data.npz {more}"))
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    pub fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.path()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}
