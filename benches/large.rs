//! A language model of any size, with random weights in external data, and what it takes to bring it to 4 bits.
//!
//! ```text
//! cargo bench --bench large -- 6            make a model of 6 GB in a temporary folder, copy it, quantize it, and say what each took
//! cargo bench --bench large -- 6 FOLDER     make it there (model.onnx, model.onnx.data), and leave it
//! ```
//!
//! Decoder blocks as GPT-2 has them, one head each; the width is fixed, so that the size is that of the blocks and their number.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use prost::Message;
use qonvert::{
    Config, Job, Settings, onnx_file,
    onnx_file::proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
        TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataLocation,
        tensor_shape_proto, type_proto,
    },
    pipeline, report,
};

const WIDTH: usize = 2560;
const WORDS: usize = 50_257;
const FLOAT: i32 = 1;
const INT64: i32 = 7;

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let gigabytes: f64 = match given.first().map(|a| a.parse()) {
        Some(Ok(size)) if size > 0.0 => size,
        // `cargo bench` runs all benches: this one does nothing unless it is asked for a size.
        _ => {
            println!("large: give a size in GB: cargo bench --bench large -- 6");
            return ExitCode::SUCCESS;
        }
    };
    let kept = given.get(1).map(PathBuf::from);
    let folder =
        kept.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("qonvert-large-{}", std::process::id())));
    fs::create_dir_all(&folder).expect("a folder");
    let since = Instant::now();
    let bytes = make(&folder, gigabytes);
    println!("made {:.2} GB in {:.1} s: {}", bytes as f64 / 1e9, since.elapsed().as_secs_f64(), folder.display());
    if kept.is_none() {
        measure(&folder);
        fs::remove_dir_all(&folder).expect("it goes");
    }
    ExitCode::SUCCESS
}

fn measure(folder: &Path) {
    let since = Instant::now();
    fs::copy(folder.join("model.onnx.data"), folder.join("copy")).expect("it copies");
    println!("copied in {:.1} s", since.elapsed().as_secs_f64());
    fs::remove_file(folder.join("copy")).expect("it goes");
    let config = Config::load(Some("int4"), None).expect("the preset");
    let settings = Settings::new(config).expect("settings");
    let job = Job::new(folder.join("model.onnx"), folder.join("out.onnx"), &settings);
    let since = Instant::now();
    let done = pipeline::run(&job).unwrap_or_else(|e| panic!("{e}"));
    print!("{}", report::terminal::render(&done, false));
    println!("quantized in {:.1} s", since.elapsed().as_secs_f64());
    onnx_file::read(&folder.join("out.onnx")).expect("it reads");
}

/// Writes the model and returns how large its weights are.
fn make(folder: &Path, gigabytes: f64) -> u64 {
    let block = 12 * WIDTH * WIDTH;
    let rest = 2 * WORDS * WIDTH;
    let blocks = ((gigabytes * 1e9 / 4.0 - rest as f64) / block as f64).round().max(1.0) as usize;
    let file = File::create(folder.join("model.onnx.data")).expect("a file");
    let mut net = Net { graph: GraphProto::default(), data: BufWriter::with_capacity(1 << 22, file), at: 0, seed: 1 };
    net.graph.name = Some("decoder".into());
    net.graph.input.push(info("ids", INT64, &["batch", "length"]));
    let table = net.weight("table", &[WORDS, WIDTH]);
    let mut x = net.node("Gather", &[&table, "ids"], "embedded", Vec::new());
    for i in 0..blocks {
        x = net.block(i, &x);
    }
    let normed = net.normalized("last", &x);
    let head = net.weight("head", &[WIDTH, WORDS]);
    net.node("MatMul", &[&normed, &head], "logits", Vec::new());
    net.graph.output.push(info("logits", FLOAT, &["batch", "length", "words"]));
    net.data.flush().expect("it writes");
    let opset = OperatorSetIdProto { domain: None, version: Some(17) };
    let model =
        ModelProto { ir_version: Some(8), graph: Some(net.graph), opset_import: vec![opset], ..ModelProto::default() };
    fs::write(folder.join("model.onnx"), model.encode_to_vec()).expect("it writes");
    net.at
}

struct Net {
    graph: GraphProto,
    data: BufWriter<File>,
    at: u64,
    seed: u64,
}

impl Net {
    fn block(&mut self, i: usize, x: &str) -> String {
        let name = |part: &str| format!("block{i}/{part}");
        let normed = self.normalized(&name("norm1"), x);
        let [q, k, v] = ["q", "k", "v"].map(|part| self.linear(&name(part), &normed, WIDTH, WIDTH));
        let turned = self.node("Transpose", &[&k], &name("turned"), vec![ints("perm", &[0, 2, 1])]);
        let scores = self.node("MatMul", &[&q, &turned], &name("scores"), Vec::new());
        let root = self.scalar(&name("root"), (WIDTH as f32).sqrt());
        let scaled = self.node("Div", &[&scores, &root], &name("scaled"), Vec::new());
        let shares = self.node("Softmax", &[&scaled], &name("shares"), vec![int("axis", -1)]);
        let mixed = self.node("MatMul", &[&shares, &v], &name("mixed"), Vec::new());
        let out = self.linear(&name("out"), &mixed, WIDTH, WIDTH);
        let x = self.node("Add", &[x, &out], &name("sum1"), Vec::new());
        let normed = self.normalized(&name("norm2"), &x);
        let up = self.linear(&name("up"), &normed, WIDTH, 4 * WIDTH);
        let active = self.node("Relu", &[&up], &name("active"), Vec::new());
        let down = self.linear(&name("down"), &active, 4 * WIDTH, WIDTH);
        self.node("Add", &[&x, &down], &name("sum2"), Vec::new())
    }

    fn linear(&mut self, name: &str, x: &str, from: usize, to: usize) -> String {
        let weight = self.weight(&format!("{name}/weight"), &[from, to]);
        let bias = self.weight(&format!("{name}/bias"), &[to]);
        let product = self.node("MatMul", &[x, &weight], &format!("{name}/product"), Vec::new());
        self.node("Add", &[&product, &bias], &format!("{name}/sum"), Vec::new())
    }

    fn normalized(&mut self, name: &str, x: &str) -> String {
        let [scale, bias] = ["scale", "bias"].map(|part| self.weight(&format!("{name}/{part}"), &[WIDTH]));
        self.node("LayerNormalization", &[x, &scale, &bias], &format!("{name}/normed"), vec![int("axis", -1)])
    }

    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> String {
        self.graph.node.push(NodeProto {
            op_type: Some(op.into()),
            name: Some(format!("{output}/{op}")),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.to_owned()],
            attribute,
            ..NodeProto::default()
        });
        output.to_owned()
    }

    fn scalar(&mut self, name: &str, value: f32) -> String {
        let tensor = TensorProto {
            name: Some(name.to_owned()),
            data_type: Some(FLOAT),
            raw_data: Some(value.to_le_bytes().to_vec().into()),
            ..TensorProto::default()
        };
        self.graph.initializer.push(tensor);
        name.to_owned()
    }

    /// Weights whose spread is that of a trained layer: sums of two random numbers, by the depth.
    fn weight(&mut self, name: &str, dims: &[usize]) -> String {
        let count: usize = dims.iter().product();
        let spread = 1.0 / (dims[0] as f32).sqrt() / 32_768.0;
        let mut chunk = Vec::with_capacity(1 << 16);
        for at in (0..count).step_by(1 << 14) {
            chunk.clear();
            for _ in at..count.min(at + (1 << 14)) {
                self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let bits = self.seed >> 32;
                let number = ((bits & 0xffff) as f32 + (bits >> 16) as f32 - 65_535.0) * spread;
                chunk.extend_from_slice(&number.to_le_bytes());
            }
            self.data.write_all(&chunk).expect("it writes");
        }
        let length = 4 * count as u64;
        let entry = |k: &str, v: String| StringStringEntryProto { key: Some(k.into()), value: Some(v) };
        self.graph.initializer.push(TensorProto {
            name: Some(name.to_owned()),
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: Some(FLOAT),
            external_data: vec![
                entry("location", "model.onnx.data".into()),
                entry("offset", self.at.to_string()),
                entry("length", length.to_string()),
            ],
            data_location: Some(DataLocation::External.into()),
            ..TensorProto::default()
        });
        self.at += length;
        name.to_owned()
    }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Int.into()),
        i: Some(i),
        ..Default::default()
    }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    let r#type = Some(AttributeType::Ints.into());
    AttributeProto { name: Some(name.into()), r#type, ints: ints.to_vec(), ..Default::default() }
}

fn info(name: &str, elem_type: i32, dims: &[&str]) -> ValueInfoProto {
    let dim = |d: &&str| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimParam((*d).to_owned())),
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: Some(elem_type), shape: Some(shape) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(r#type), ..Default::default() }
}
