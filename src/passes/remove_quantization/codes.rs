//! The numbers that codes stand for, wherever they come from.

use std::collections::{HashMap, HashSet};

use super::{Clamps, Params, clamps::Maker, is_quantization};
use crate::{
    analysis::types::Types,
    error::Result,
    ir::{DType, Model, NodeId, NodeSpec, Place, Tensor, ValueId},
    passes::{
        remove_few_bits::base_name,
        support::{lazy::releasing, pairs::moves_codes, quantizer::clamp_of_codes, replace::behind_maker},
    },
    quant::{
        float8::Float8,
        pack,
        params::{Range, type_range},
    },
};

/// Codes between these bounds only, both or none.
type Within = Option<(i64, i64)>;
/// A value, or why there is none, in words.
type Made = Result<std::result::Result<ValueId, String>>;

pub(super) struct Remover {
    types: Types,
    which: Clamps,
    pub(super) maker: Maker,
    made: HashMap<(ValueId, Params, Within), ValueId>,
    pub(super) quantizers: HashSet<NodeId>,
    pub(super) weights: usize,
    /// Inputs and outputs of the model that stay codes.
    pub(super) kept: Vec<(String, DType)>,
}

impl Remover {
    pub(super) fn new(types: Types, which: Clamps) -> Self {
        let (maker, made, quantizers) = (Maker::default(), HashMap::new(), HashSet::new());
        Self { types, which, maker, made, quantizers, weights: 0, kept: Vec::new() }
    }

    /// What codes stand for, as numbers of type `out`.
    pub(super) fn float_of(
        &mut self,
        model: &mut Model,
        codes: ValueId,
        params: Params,
        out: DType,
        within: Within,
    ) -> Made {
        let key = (codes, params, within);
        if let Some(&known) = self.made.get(&key) {
            return Ok(Ok(known));
        }
        let made = self.find(model, codes, params, out, within)?;
        if let Ok(real) = made {
            self.made.insert(key, real);
        }
        Ok(made)
    }

    fn find(&mut self, model: &mut Model, codes: ValueId, params: Params, out: DType, within: Within) -> Made {
        if let Some(tensor) = model.value(codes).constant().cloned() {
            return self.constant(model, codes, &tensor, params, out, within);
        }
        let Some((maker, which)) = model.value(codes).producer() else {
            return self.spelled(model, codes, params, out, within);
        };
        let node = model.node(maker);
        if node.op_type == "QuantizeLinear" {
            return self.pair(model, maker, params, within);
        }
        if node.is("DynamicQuantizeLinear") {
            let own = node.output(1) == Some(params.scale) && node.output(2) == params.zero_point;
            return Ok(match node.input(0).filter(|_| own && which == 0) {
                Some(x) => {
                    self.quantizers.insert(maker);
                    Ok(x)
                }
                None => Err("its codes were made with another scale at run time".to_owned()),
            });
        }
        if let Some((inner, (lo, hi))) = clamp_of_codes(model, maker) {
            let (least, greatest) = within.unwrap_or((i64::MIN, i64::MAX));
            return self.float_of(model, inner, params, out, Some((lo.max(least), hi.min(greatest))));
        }
        let one = params.coding(model).is_some_and(|c| c.scale.len() == 1 && c.block == 0);
        let joins = model.node(maker).is("Concat") || model.node(maker).is("Where");
        let pads = model.node(maker).is("Pad");
        let same = model.node(maker).is("Identity");
        if one && (joins || pads || same || moves_codes(model, maker)) {
            return self.moved(model, maker, codes, params, out, within);
        }
        if is_quantization(model.node(maker)) {
            let (op, label) = (&model.node(maker).op_type, model.node_label(maker));
            return Ok(Err(format!("its codes come from {label:?} ({op}), which has no float form here")));
        }
        self.spelled(model, codes, params, out, within)
    }

    fn constant(
        &mut self,
        model: &mut Model,
        codes: ValueId,
        tensor: &Tensor,
        params: Params,
        out: DType,
        within: Within,
    ) -> Made {
        let Some(coding) = params.coding(model) else {
            return Ok(Err("the scale of constant codes is computed by the model".to_owned()));
        };
        if within.is_some() {
            return Ok(Err("constant codes are clamped".to_owned()));
        }
        let numbers = coding.numbers(tensor, out).map_err(|e| e.value(model.value(codes).name()))?;
        let numbers = releasing(numbers, tensor)?;
        let name = base_name(model.value(codes).name()).to_owned();
        self.weights += 1;
        Ok(Ok(model.add_initializer(model.value(codes).graph(), &name, numbers)))
    }

    /// Behind a QuantizeLinear.
    fn pair(&mut self, model: &mut Model, quantize: NodeId, params: Params, within: Within) -> Made {
        let Some((x, own)) = Params::of(model, quantize, "QuantizeLinear") else {
            return Ok(Err("its codes come from a QuantizeLinear of another domain".to_owned()));
        };
        if !own.same(model, &params) {
            return Ok(Err("its codes were made with another scale or zero point".to_owned()));
        }
        let codes = self.codes_of(model, quantize);
        self.quantizers.insert(quantize);
        if let Some(tensor) = model.value(x).constant().filter(|t| t.dtype().is_float()).cloned() {
            let saturate = model.node(quantize).int("saturate").unwrap_or(1) != 0;
            let rounded = params.coding(model).map(|c| c.rounded(&tensor, codes, saturate));
            if within.is_some() {
                return Ok(Err("codes of a constant are clamped".to_owned()));
            }
            let Some(rounded) = rounded.transpose()? else {
                return Ok(Err("the scale of a constant is computed by the model".to_owned()));
            };
            let rounded = releasing(rounded, &tensor)?;
            let name = format!("{}_rounded", model.value(x).name());
            self.weights += 1;
            return Ok(Ok(model.add_initializer(model.value(x).graph(), &name, rounded)));
        }
        self.clamped(model, x, params, codes, within).map(Ok)
    }

    /// The type of the codes that a QuantizeLinear makes.
    fn codes_of(&self, model: &Model, quantize: NodeId) -> DType {
        let node = model.node(quantize);
        let told = node.int("output_dtype").and_then(|n| DType::from_onnx(i32::try_from(n).ok()?));
        let zero = node.input(2).and_then(|z| model.value(z).dtype());
        let known = node.output(0).and_then(|v| model.value(v).dtype().or_else(|| self.types.dtype(v)));
        zero.or(told.filter(|t| *t != DType::Float)).or(known).unwrap_or(DType::Uint8)
    }

    /// A value as a quantizer leaves it but for the rounding.
    fn clamped(
        &mut self,
        model: &mut Model,
        x: ValueId,
        params: Params,
        codes: DType,
        within: Within,
    ) -> Result<ValueId> {
        let range = match Float8::of(codes) {
            Some(float8) => params
                .coding(model)
                .and_then(|c| c.scale.scalar_f32())
                .map(|s| (-float8.largest() * s, float8.largest() * s)),
            None => type_range(codes).ok().and_then(|(least, greatest)| {
                let (lo, hi) = within.unwrap_or((i64::MIN, i64::MAX));
                params.range(model, (i64::from(least).max(lo), i64::from(greatest).min(hi)))
            }),
        };
        let Some((lo, hi)) = range else { return Ok(x) };
        // Several scales have no step.
        let step = params.coding(model).and_then(|c| c.scale.scalar_f32()).unwrap_or(0.0);
        let dtype = model.value(x).dtype().or_else(|| self.types.dtype(x));
        let dtype = dtype.or_else(|| model.value(params.scale).dtype()).unwrap_or(DType::Float);
        self.maker.clamped(model, &self.types, (x, dtype), (Range::new(lo, hi), step), self.which)
    }

    /// What a QuantizeLinear reads, with the clamp that it does besides.
    pub(super) fn clamped_input(
        &mut self,
        model: &mut Model,
        id: NodeId,
        x: ValueId,
        params: Params,
    ) -> Result<ValueId> {
        let codes = self.codes_of(model, id);
        self.clamped(model, x, params, codes, None)
    }

    /// A node that moves or joins codes does so with numbers.
    fn moved(
        &mut self,
        model: &mut Model,
        node: NodeId,
        codes: ValueId,
        params: Params,
        out: DType,
        within: Within,
    ) -> Made {
        let n = model.node(node);
        let (joins, pads, first) = (n.is("Concat"), n.is("Pad"), usize::from(n.is("Where")));
        let from = match (joins, first) {
            (true, _) => 0..n.inputs().len(),
            (_, 1) => 1..3,
            _ => 0..1,
        };
        let mut inputs = n.inputs().to_vec();
        let (op, mut attributes, outputs) = (n.op_type.clone(), n.attributes.clone(), n.outputs().to_vec());
        for i in from {
            let Some(v) = inputs.get(i).copied().flatten() else { continue };
            match self.float_of(model, v, params, out, within)? {
                Ok(real) => inputs[i] = Some(real),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        let constant = model.node(node).string("mode").is_none_or(|mode| mode == "constant");
        if pads && constant {
            match self.padding(model, node, params, out)? {
                Some(Ok(value)) => {
                    inputs.truncate(4);
                    inputs.resize(inputs.len().max(3), None);
                    inputs[2] = Some(value);
                }
                Some(Err(number)) => attributes.push(crate::ir::Attr::new("value", number)),
                None => return Ok(Err("codes are padded with something that is computed".to_owned())),
            }
        }
        let mut spec = NodeSpec::new(op).attrs(attributes).inputs(inputs);
        for v in &outputs {
            spec = match v {
                Some(v) => spec.output(format!("{}_float", model.value(*v).name())),
                None => spec.output_value(None),
            };
        }
        // The codes may still be read, so the node itself stays until nobody does.
        let made = model.insert(spec, Place::Before(node));
        let reals = model.node(made).outputs().to_vec();
        let mut found = None;
        for (real, old) in reals.into_iter().zip(&outputs) {
            if let (Some(real), Some(old)) = (real, *old) {
                self.made.insert((old, params, within), real);
                found = found.or((old == codes).then_some(real));
            }
        }
        Ok(found.ok_or_else(|| "it reads another output than the codes".to_owned()))
    }

    /// What a Pad puts around numbers where it put a code around codes: a value, or a number for old operator sets.
    fn padding(
        &self,
        model: &mut Model,
        node: NodeId,
        params: Params,
        out: DType,
    ) -> Result<Option<std::result::Result<ValueId, f32>>> {
        let code = match model.node(node).input(2) {
            None => 0,
            Some(v) => match model.value(v).constant().and_then(Tensor::scalar_i64) {
                Some(code) => code,
                None => return Ok(None),
            },
        };
        let Some((number, _)) = params.range(model, (code, code)) else { return Ok(None) };
        if model.opset("").unwrap_or(1) < 11 {
            return Ok(Some(Err(number)));
        }
        let tensor =
            crate::quant::coding::later(&Tensor::from_f32(&[], &[number]), &(), out, vec![], |(), t| t.to_f32())?;
        Ok(Some(Ok(model.add_initializer(model.node(node).graph(), "padding", tensor))))
    }

    /// Codes that the model reads, or that plain operators make: numbers of them by plain operators.
    fn spelled(&mut self, model: &mut Model, codes: ValueId, params: Params, out: DType, within: Within) -> Made {
        let Some(coding) = params.coding(model).filter(|_| within.is_none() && params.block == 0) else {
            return Ok(Err("its scale is computed by the model".to_owned()));
        };
        let rank = model.value(codes).shape().map(|s| s.dims.len()).or_else(|| self.types.rank(codes));
        let dims = match (coding.scale.len(), rank) {
            (1, _) => vec![],
            (n, Some(rank)) => {
                let axis = if params.axis < 0 { params.axis + rank as i64 } else { params.axis };
                let Some(at) = usize::try_from(axis).ok().filter(|&a| a < rank) else {
                    return Ok(Err("its scales have no axis".to_owned()));
                };
                (0..rank).map(|i| if i == at { n } else { 1 }).collect()
            }
            _ => return Ok(Err("it has a scale for each channel of codes of unknown rank".to_owned())),
        };
        let graph = model.value(codes).graph();
        let name = model.value(codes).name().to_owned();
        if let Some(dtype) =
            model.value(codes).dtype().filter(|_| model.value(codes).is_input() && graph == model.main())
        {
            self.kept.push((name.clone(), dtype));
        }
        let place = behind_maker(model, codes, graph);
        let cast = NodeSpec::new("Cast").input(codes).attr("to", i64::from(out.to_onnx()));
        let mut real = model.insert_value(cast.output(format!("{name}_float")), place)?;
        let zeros = coding.zero_point.as_ref().map(pack::unpack).transpose()?.filter(|z| z.iter().any(|&z| z != 0));
        let zeros = zeros.map(|z| z.into_iter().map(|z| z as f32).collect::<Vec<_>>());
        for (op, numbers) in [("Sub", zeros), ("Mul", Some(coding.scale.to_f32()?))] {
            let Some(numbers) = numbers else { continue };
            let tensor = Tensor::from_f32(&dims, &numbers);
            let tensor = crate::quant::coding::later(&tensor, &(), out, dims.clone(), |(), t| t.to_f32())?;
            let constant = model.add_initializer(graph, &format!("{name}_{op}_by"), tensor);
            let after = model.producer(real).map_or(place, Place::After);
            let spec = NodeSpec::new(op).inputs([Some(real), Some(constant)]).output(format!("{name}_{op}"));
            real = model.insert_value(spec, after)?;
        }
        Ok(Ok(real))
    }
}
