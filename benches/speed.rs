//! How fast the inner loops are: gathering statistics and histograms, choosing ranges, rounding weights, and the whole job
//! on a small model. `cargo bench` runs all, `cargo bench -- observe` one group.

#[path = "../tests/common/random.rs"]
mod random;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use qonvert::{
    Config, Job, Settings,
    calibrate::{
        ChannelMeans, Observer,
        means::Axis,
        observers::{METHODS, Options},
    },
    ir::{DType, Tensor},
    onnx_file, pipeline,
    quant::{QuantTarget, granularity::quantize_weight},
};
use random::Random;

/// Numbers like those behind a Relu: half of them 0, the rest with a tail.
fn activations(count: usize) -> Vec<f32> {
    let mut draw = Random(1);
    let mut next = || draw.uniform() - 0.5;
    (0..count).map(|_| (next() + next() + next()).max(0.0)).collect()
}

fn observe(c: &mut Criterion) {
    let values = activations(1 << 20);
    let mut group = c.benchmark_group("observe");
    group.throughput(Throughput::Elements(values.len() as u64));
    for method in METHODS {
        let mut observer = Observer::new(method, Options::default());
        group.bench_function(BenchmarkId::from_parameter(method.name), |b| {
            b.iter(|| observer.update(0, black_box(&values)));
        });
    }
    let mut means = ChannelMeans::new(Axis::Second);
    group.bench_function("means", |b| b.iter(|| means.update(&[1, 256, 64, 64], black_box(&values))));
    group.finish();
}

fn choose(c: &mut Criterion) {
    let values = activations(1 << 18);
    let mut group = c.benchmark_group("range");
    for method in METHODS {
        let mut observer = Observer::new(method, Options::default());
        observer.update(0, &values);
        group.bench_function(BenchmarkId::from_parameter(method.name), |b| {
            b.iter(|| black_box(&observer).range(QuantTarget::ACTIVATION));
        });
    }
    group.finish();
}

fn weights(c: &mut Criterion) {
    let weight = Tensor::from_f32(&[512, 512, 3, 3], &activations(512 * 512 * 9));
    let mut group = c.benchmark_group("weight");
    group.throughput(Throughput::Elements(weight.len() as u64));
    for (name, axis) in [("per-tensor", None), ("per-channel", Some(0))] {
        group.bench_function(name, |b| {
            b.iter(|| quantize_weight(black_box(&weight), DType::Int8, axis, true, false));
        });
    }
    group.finish();
}

fn job(c: &mut Criterion) {
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/models");
    let folder = tempfile::tempdir().expect("a folder for the result");
    let settings = Settings::new(Config::default()).expect("the default is right");
    let mut group = c.benchmark_group("job");
    group.sample_size(10);
    for name in ["digits_cnn.torchscript", "digits_transformer.dynamo"] {
        let mut job = Job::new(format!("{models}/{name}.onnx"), folder.path().join("out.onnx"), &settings);
        job.data = Some(format!("{models}/digits_calib.npz").into());
        group.bench_function(BenchmarkId::new("quantize", name), |b| b.iter(|| pipeline::quantize(&job)));
        group.bench_function(BenchmarkId::new("read", name), |b| b.iter(|| onnx_file::read(&job.model)));
    }
    group.finish();
}

criterion_group!(all, observe, choose, weights, job);
criterion_main!(all);
