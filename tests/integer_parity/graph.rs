//! Graphs of one operator, in integers or between Q and DQ, run in ONNX Runtime.

use qonvert::{
    ir::{Attr, DType, Dim, Model, NodeSpec, Place, Shape, Tensor, Type, ValueId},
    onnx_file,
    quant::{QParams, arith::dequantize_slice, pack},
};

use super::draw::{Drawn, DrawnWeight};
use crate::common::{ort_run, ort_try_run};

fn empty() -> Model {
    let mut model = Model::new(8);
    model.set_opset("", 17);
    model.set_opset("com.microsoft", 1);
    model
}

fn encoded(model: &Model) -> Vec<u8> {
    onnx_file::to_bytes(model).expect("the model encodes")
}

fn feed(model: &mut Model, feeds: &mut Vec<(String, Tensor)>, t: Tensor) -> ValueId {
    let g = model.main();
    let v = model.add_value(g, "x");
    let dims = t.dims().iter().map(|&d| Dim::Known(d as i64)).collect();
    model.value_mut(v).ty = Some(Type::tensor(t.dtype(), Some(Shape::new(dims))));
    model.add_input(v);
    feeds.push((model.value(v).name().to_owned(), t));
    v
}

fn insert(model: &mut Model, spec: NodeSpec, dtype: Option<DType>) -> ValueId {
    let place = Place::End(model.main());
    let ty = dtype.map(|d| Type::tensor(d, None));
    let node = model.insert(spec.typed_output("y", ty), place);
    model.node(node).output(0).expect("it has an output")
}

fn scalar_zero(params: QParams) -> Tensor {
    pack::pack(params.dtype, &[], &[params.zero_point]).expect("a code")
}

/// The dims of parameters: of one none, of many as the weight says.
fn dims_of(count: usize, w: &DrawnWeight) -> &[usize] {
    if count == 1 { &[] } else { &w.channel_dims }
}

fn scales_of(w: &DrawnWeight) -> Tensor {
    Tensor::from_f32(dims_of(w.scales.len(), w), &w.scales)
}

fn zeros_of(w: &DrawnWeight) -> Tensor {
    pack::pack(w.dtype, dims_of(w.zero_points.len(), w), &w.zero_points).expect("codes of the type")
}

/// One integer operator: its inputs in order, and its attributes.
pub struct Case {
    model: Model,
    feeds: Vec<(String, Tensor)>,
    inputs: Vec<Option<ValueId>>,
    attrs: Vec<Attr>,
}

impl Case {
    pub fn new() -> Self {
        Self { model: empty(), feeds: Vec::new(), inputs: Vec::new(), attrs: Vec::new() }
    }

    /// An input that the caller gives.
    pub fn fed(mut self, t: Tensor) -> Self {
        let v = feed(&mut self.model, &mut self.feeds, t);
        self.inputs.push(Some(v));
        self
    }

    pub fn constant(mut self, t: Tensor) -> Self {
        let g = self.model.main();
        self.inputs.push(Some(self.model.add_initializer(g, "c", t)));
        self
    }

    pub fn absent(mut self) -> Self {
        self.inputs.push(None);
        self
    }

    pub fn scale(self, scale: f32) -> Self {
        self.constant(Tensor::from_f32(&[], &[scale]))
    }

    pub fn zero(self, params: QParams) -> Self {
        self.constant(scalar_zero(params))
    }

    /// Scale and zero point.
    pub fn params(self, params: QParams) -> Self {
        self.scale(params.scale).zero(params)
    }

    pub fn scales(self, w: &DrawnWeight) -> Self {
        self.constant(scales_of(w))
    }

    pub fn zeros(self, w: &DrawnWeight) -> Self {
        self.constant(zeros_of(w))
    }

    /// Codes that the caller gives, their scale and zero point.
    pub fn data(self, x: &Drawn) -> Self {
        self.fed(x.tensor()).params(x.params)
    }

    /// Constant codes, their scales and zero points.
    pub fn weight(self, w: &DrawnWeight) -> Self {
        self.constant(w.tensor()).scales(w).zeros(w)
    }

    pub fn bias(self, bias: Option<&[i32]>) -> Self {
        match bias {
            Some(bias) => self.constant(Tensor::from_i32(&[bias.len()], bias)),
            None => self,
        }
    }

    pub fn float_bias(self, bias: Option<&[f32]>) -> Self {
        match bias {
            Some(bias) => self.constant(Tensor::from_f32(&[bias.len()], bias)),
            None => self,
        }
    }

    pub fn int(mut self, name: &str, value: i64) -> Self {
        self.attrs.push(Attr::new(name, value));
        self
    }

    pub fn ints(mut self, name: &str, values: &[usize]) -> Self {
        self.attrs.push(Attr::new(name, values.iter().map(|&v| v as i64).collect::<Vec<i64>>()));
        self
    }

    pub fn float(mut self, name: &str, value: f32) -> Self {
        self.attrs.push(Attr::new(name, value));
        self
    }

    fn finish(mut self, op: &str, domain: &str, outputs: &[DType]) -> (Vec<u8>, Vec<(String, Tensor)>) {
        let g = self.model.main();
        let mut spec = NodeSpec::new(op).domain(domain).inputs(self.inputs).attrs(self.attrs);
        for &dtype in outputs {
            spec = spec.typed_output("y", Some(Type::tensor(dtype, None)));
        }
        let node = self.model.insert(spec, Place::End(g));
        for i in 0..outputs.len() {
            let y = self.model.node(node).output(i).expect("it has this output");
            self.model.add_output(g, y);
        }
        (encoded(&self.model), self.feeds)
    }

    /// The operator's outputs; `None` without ONNX Runtime.
    #[track_caller]
    pub fn run(self, op: &str, domain: &str, outputs: &[DType]) -> Option<Vec<Tensor>> {
        let (bytes, feeds) = self.finish(op, domain, outputs);
        ort_run(&bytes, &feeds.iter().map(|(name, t)| (name.as_str(), t.clone())).collect::<Vec<_>>())
    }

    /// Whether the operator loads and runs; `None` without ONNX Runtime.
    pub fn runs(self, op: &str, domain: &str, output: DType) -> Option<bool> {
        let (bytes, feeds) = self.finish(op, domain, &[output]);
        let feeds: Vec<_> = feeds.iter().map(|(name, t)| (name.as_str(), t.clone())).collect();
        Some(ort_try_run(&bytes, &feeds, true)?.is_ok())
    }
}

/// A float operator between Q and DQ, as `qonvert` writes it: from real numbers that are codes, to real numbers that
/// are.
pub struct Chain {
    model: Model,
    feeds: Vec<(String, Tensor)>,
    inputs: Vec<Option<ValueId>>,
}

impl Chain {
    pub fn new() -> Self {
        Self { model: empty(), feeds: Vec::new(), inputs: Vec::new() }
    }

    fn initializer(&mut self, t: Tensor) -> ValueId {
        let g = self.model.main();
        self.model.add_initializer(g, "c", t)
    }

    fn pair(&mut self, x: ValueId, params: QParams) -> ValueId {
        let s = self.initializer(Tensor::from_f32(&[], &[params.scale]));
        let z = self.initializer(scalar_zero(params));
        let q = insert(&mut self.model, NodeSpec::new("QuantizeLinear").input(x).input(s).input(z), None);
        let spec = NodeSpec::new("DequantizeLinear").input(q).input(s).input(z);
        insert(&mut self.model, spec, Some(DType::Float))
    }

    fn constant(mut self, codes: Tensor, scales: Tensor, zeros: Tensor, axis: i64) -> Self {
        let spec = [codes, scales, zeros]
            .into_iter()
            .fold(NodeSpec::new("DequantizeLinear"), |spec, t| spec.input(self.initializer(t)));
        let v = insert(&mut self.model, spec.attr("axis", axis), None);
        self.inputs.push(Some(v));
        self
    }

    /// An input that the operator takes as it is.
    pub fn plain(mut self, t: Tensor) -> Self {
        let v = feed(&mut self.model, &mut self.feeds, t);
        self.inputs.push(Some(v));
        self
    }

    pub fn data(mut self, x: &Drawn) -> Self {
        let real = Tensor::from_f32(&x.dims, &dequantize_slice(&x.codes, x.params));
        let v = feed(&mut self.model, &mut self.feeds, real);
        let v = self.pair(v, x.params);
        self.inputs.push(Some(v));
        self
    }

    pub fn weight(self, w: &DrawnWeight, axis: i64) -> Self {
        let w = w.clone().with_all_zero_points();
        self.constant(w.tensor(), scales_of(&w), zeros_of(&w), axis)
    }

    /// A bias of codes under the product of both scales.
    pub fn bias(self, bias: Option<&[i32]>, x: &Drawn, w: &DrawnWeight) -> Self {
        let Some(bias) = bias else { return self };
        let scales: Vec<f32> = w.scales.iter().map(|s| x.params.scale * s).collect();
        let dims = dims_of(scales.len(), w);
        let zeros = Tensor::from_i32(dims, &vec![0; scales.len()]);
        self.constant(Tensor::from_i32(&[bias.len()], bias), Tensor::from_f32(dims, &scales), zeros, 0)
    }

    /// The operator, with the attributes of `attrs`, quantized to `y` and dequantized; `None` without ONNX Runtime.
    #[track_caller]
    pub fn run(mut self, op: &str, attrs: Case, y: QParams) -> Option<Tensor> {
        let spec = NodeSpec::new(op).inputs(std::mem::take(&mut self.inputs)).attrs(attrs.attrs);
        let v = insert(&mut self.model, spec, None);
        let v = self.pair(v, y);
        let g = self.model.main();
        self.model.add_output(g, v);
        let feeds: Vec<_> = self.feeds.iter().map(|(name, t)| (name.as_str(), t.clone())).collect();
        ort_run(&encoded(&self.model), &feeds)?.pop()
    }
}
