//! What a runtime will ask of a file, asked before the file gets its name.
//!
//! Each rule is one that ONNX Runtime refuses a model for, or worse, computes something else. The original may break
//! rules that are not ours to mend, so only what quantization touches is held to the letter: links, order, opset
//! imports, Q/DQ nodes and their constants, the types of what they feed, and the model's face to its callers.

use std::collections::{HashMap, HashSet};

use crate::{
    analysis::types::{self, Types},
    error::{Error, Result},
    ir::{DType, GraphId, Model, NodeId, Tensor, ValueId, types::TypeKind},
};

/// Operators that qonvert inserts: domain, name, and the first opset that has them.
const INSERTED: &[(&str, &str, i64)] = &[
    ("", "QuantizeLinear", 10),
    ("", "DequantizeLinear", 10),
    ("", "DynamicQuantizeLinear", 11),
    ("", "QLinearConv", 10),
    ("", "QLinearMatMul", 10),
    ("", "MatMulInteger", 10),
    ("", "ConvInteger", 10),
    ("", "HardSwish", 14),
    ("com.microsoft", "QGemm", 1),
    ("com.microsoft", "DynamicQuantizeLSTM", 1),
    ("com.microsoft", "MatMulNBits", 1),
];

/// Refuses a model that no runtime should be given. The error names the node and the fact.
pub fn check(model: &Model) -> Result<()> {
    model.verify()?;
    check_order(model, model.main(), &mut HashSet::new())?;
    check_opsets(model)?;
    let types = types::infer(model);
    for n in model.all_nodes() {
        let at = |e: Error| e.node(model.node_label(n), &model.node(n).op_type);
        check_available(model, n).map_err(at)?;
        if model.node(n).is("QuantizeLinear") || model.node(n).is("DequantizeLinear") {
            check_pair(model, &types, n).map_err(at)?;
        }
        check_same_types(model, &types, n).map_err(at)?;
    }
    Ok(())
}

/// Refuses a written model that callers of the original could not use: other names, types or order of inputs and
/// outputs, or a change of a declared dim. `half`: what floats among them are to be instead.
pub fn check_interface(original: &Model, written: &Model, half: Option<DType>) -> Result<()> {
    let inputs = [original, written].map(Model::required_inputs);
    let outputs = [original, written].map(|m| m.graph(m.main()).outputs().to_vec());
    for (what, [before, after]) in [("inputs", inputs), ("outputs", outputs)] {
        if before.len() != after.len() {
            return Err(Error::bug(format!("the model had {} {what}, now {}", before.len(), after.len())));
        }
        for (&a, &b) in before.iter().zip(&after) {
            let (a, b) = (original.value(a), written.value(b));
            if a.name() != b.name() {
                return Err(Error::bug(format!("{:?} of the model's {what} became {:?}", a.name(), b.name())));
            }
            let mut want = a.ty.clone();
            if let Some(TypeKind::Tensor { dtype, .. }) = want.as_mut().map(|t| &mut t.kind)
                && *dtype == Some(DType::Float)
            {
                *dtype = half.or(*dtype);
            }
            if want.is_some() && want != b.ty {
                return Err(Error::bug(format!("its type changed among the model's {what}")).value(a.name()));
            }
        }
    }
    Ok(())
}

/// Every value is made before it is read; subgraphs see what was made before their node.
fn check_order(model: &Model, graph: GraphId, made: &mut HashSet<ValueId>) -> Result<()> {
    let mine = model.graph(graph).inputs().iter().chain(model.graph(graph).initializers());
    made.extend(mine.copied());
    for n in model.nodes(graph) {
        for &v in model.node(n).inputs().iter().flatten() {
            if !made.contains(&v) {
                let name = model.value(v).name();
                return Err(Error::bug(format!("reads {name:?} before it is made"))
                    .node(model.node_label(n), &model.node(n).op_type));
            }
        }
        for sub in model.node(n).subgraphs() {
            check_order(model, sub, made)?;
        }
        made.extend(model.node(n).outputs().iter().copied().flatten());
    }
    let missing = model.graph(graph).outputs().iter().find(|v| !made.contains(v));
    match missing {
        Some(&v) => Err(Error::bug("is handed out, but nothing makes it").value(model.value(v).name())),
        None => Ok(()),
    }
}

fn check_opsets(model: &Model) -> Result<()> {
    let mut seen: HashMap<&str, i64> = HashMap::new();
    for (domain, version) in &model.opset_imports {
        let domain = domain.as_deref().filter(|d| *d != "ai.onnx").unwrap_or("");
        if let Some(other) = seen.insert(domain, *version).filter(|other| other != version) {
            return Err(Error::malformed(format!("opset {domain:?} is imported as {other} and as {version}")));
        }
    }
    Ok(())
}

fn check_available(model: &Model, n: NodeId) -> Result<()> {
    let node = model.node(n);
    let domain = if node.in_onnx_domain() { "" } else { node.domain.as_deref().unwrap_or("") };
    // A function's body may import other opsets; it is not ours.
    let in_function = model.functions.iter().any(|f| f.graph == node.graph());
    let Some(version) = model.opset(domain) else {
        return if in_function {
            Ok(())
        } else {
            Err(Error::malformed(format!("its operator set {domain:?} is not imported")))
        };
    };
    match INSERTED.iter().find(|(d, op, _)| *d == domain && *op == node.op_type) {
        Some((_, _, first)) if version < *first => {
            Err(Error::bug(format!("needs opset {first}, the model imports {version}")))
        }
        _ => Ok(()),
    }
}

/// QuantizeLinear and DequantizeLinear: types, shapes and numbers of scale and zero point.
fn check_pair(model: &Model, types: &Types, n: NodeId) -> Result<()> {
    let node = model.node(n);
    let quantizes = node.is("QuantizeLinear");
    let opset = model.opset("").unwrap_or(0);
    let (Some(x), Some(scale)) = (node.input(0), node.input(1)) else {
        return Err(Error::bug(format!("has {} inputs, needs a value and a scale", node.inputs().len())));
    };
    let zero_point = node.input(2);
    let real = if quantizes { Some(x) } else { node.output(0) };
    for v in [real, Some(scale)].into_iter().flatten() {
        if let Some(dtype) = types.dtype(v).filter(|d| !(d.is_float() || quantizes && *d == DType::Int32)) {
            return Err(Error::bug(format!("{:?} is of type {dtype}, must be floating point", model.value(v).name())));
        }
    }
    let codes = if quantizes { node.output(0) } else { Some(x) };
    let both = codes.and_then(|v| types.dtype(v)).zip(zero_point.and_then(|v| types.dtype(v)));
    if let Some((a, b)) = both.filter(|(a, b)| a != b) {
        return Err(Error::bug(format!("codes are of type {a}, the zero point of type {b}")));
    }
    let dtype = codes.and_then(|v| types.dtype(v)).or_else(|| zero_point.and_then(|v| types.dtype(v)));
    if let Some(dtype) = dtype {
        let first = match dtype {
            DType::Uint8 | DType::Int8 => 10,
            DType::Int32 if !quantizes => 10,
            DType::Uint16 | DType::Int16 | DType::Uint4 | DType::Int4 => 21,
            DType::Uint2 | DType::Int2 => 25,
            d if d.is_integer() => return Err(Error::bug(format!("codes of type {d} do not exist"))),
            _ => 19,
        };
        if opset < first {
            return Err(Error::bug(format!("codes of type {dtype} need opset {first}, the model imports {opset}")));
        }
    }
    let Some(scales) = model.value(scale).constant() else { return Ok(()) };
    check_scale(scales, quantizes)?;
    let dims = |v: ValueId| types.shape(v).map(|s| s.iter().map(|d| d.known()).collect::<Vec<Option<usize>>>());
    let shape = dims(x).or_else(|| node.output(0).and_then(dims));
    let block = node.int("block_size").unwrap_or(0);
    check_scale_shape(scales, node.int("axis").unwrap_or(1), block, shape.as_deref(), opset)?;
    let Some(zeros) = zero_point.and_then(|v| model.value(v).constant()) else { return Ok(()) };
    // Lists of one number pass for scalars.
    if zeros.dims() != scales.dims() && (zeros.len(), scales.len()) != (1, 1) {
        let (a, b) = (scales.dims(), zeros.dims());
        return Err(Error::bug(format!("the scale has shape {a:?}, the zero point {b:?}")));
    }
    if zeros.dtype() == DType::Int32 && zeros.to_i64()?.iter().any(|&z| z != 0) {
        return Err(Error::bug("the zero point of int32 codes must be 0"));
    }
    Ok(())
}

/// Codes may stand for numbers of the other sign: 4-bit weights of other tools do, for one code more on the longer side.
fn check_scale(scales: &Tensor, quantizes: bool) -> Result<()> {
    if scales.is_deferred() {
        return Ok(()); // To see one, the whole weight would be rounded.
    }
    let (bad, must) = match quantizes {
        true => (scales.to_f32()?.into_iter().find(|s| !(s.is_finite() && *s > 0.0)), "positive and finite"),
        false => (scales.to_f32()?.into_iter().find(|s| !s.is_finite() || *s == 0.0), "finite and not 0"),
    };
    bad.map_or(Ok(()), |s| Err(Error::bug(format!("a scale is {s}, must be {must}"))))
}

/// `shape`: of the value; `None` is unknown rank, a dim of `None` an unknown dim.
fn check_scale_shape(
    scales: &Tensor,
    axis: i64,
    block: i64,
    shape: Option<&[Option<usize>]>,
    opset: i64,
) -> Result<()> {
    if block == 0 && scales.rank() == 0 {
        return Ok(());
    }
    let have = scales.dims();
    let (what, first) = if block > 0 { ("blocks", 21) } else { ("scales per channel", 13) };
    if block == 0 && scales.rank() != 1 {
        return Err(Error::bug(format!("the scale has shape {have:?}, must be a scalar or have one axis")));
    }
    // One number in a list is per tensor for runtimes, whatever the opset.
    if opset < first && scales.len() != 1 {
        return Err(Error::bug(format!("{what} need opset {first}, the model imports {opset}")));
    }
    let Some(shape) = shape else { return Ok(()) };
    let from_front = if axis < 0 { axis + shape.len() as i64 } else { axis };
    let at = usize::try_from(from_front).ok().filter(|&a| a < shape.len());
    let Some(at) = at else {
        if scales.len() == 1 {
            return Ok(());
        }
        return Err(Error::bug(format!("axis {axis} does not exist in rank {}", shape.len())));
    };
    if block == 0 {
        let n = scales.len();
        return match shape[at] {
            Some(dim) if dim != n && n != 1 => {
                Err(Error::bug(format!("the scale has {n} elements, axis {axis} of the value has {dim}")))
            }
            _ => Ok(()),
        };
    }
    let want = |(i, d): (usize, &Option<usize>)| if i == at { d.map(|d| d.div_ceil(block as usize)) } else { *d };
    let want: Vec<Option<usize>> = shape.iter().enumerate().map(want).collect();
    let fits = have.len() == want.len() && have.iter().zip(&want).all(|(h, w)| w.is_none_or(|w| w == *h));
    if fits {
        return Ok(());
    }
    let want: Vec<String> = want.iter().map(|d| d.map_or("?".to_owned(), |d| d.to_string())).collect();
    let want = want.join(", ");
    Err(Error::bug(format!("blocks of {block} along axis {axis} need scales [{want}], there are {have:?}")))
}

/// Operators all of whose inputs must be of one type, with the number of the first inputs that this is true of.
const SAME_TYPES: &[(&str, usize)] = &[
    ("Conv", 3),
    ("ConvTranspose", 3),
    ("Gemm", 3),
    ("MatMul", 2),
    ("Add", 2),
    ("Sub", 2),
    ("Mul", 2),
    ("Div", 2),
    ("Concat", usize::MAX),
    ("Clip", 3),
    ("PRelu", 2),
    ("Max", usize::MAX),
    ("Min", usize::MAX),
];

fn check_same_types(model: &Model, types: &Types, n: NodeId) -> Result<()> {
    let node = model.node(n);
    let Some(&(_, count)) = SAME_TYPES.iter().find(|(op, _)| node.is(op)) else { return Ok(()) };
    let mut known = node.inputs().iter().take(count).flatten().filter_map(|&v| Some((v, types.dtype(v)?)));
    let Some((first, dtype)) = known.next() else { return Ok(()) };
    match known.find(|(_, d)| *d != dtype) {
        Some((other, found)) => {
            let (a, b) = (model.value(first).name(), model.value(other).name());
            Err(Error::bug(format!("{a:?} is of type {dtype}, {b:?} of type {found}")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{
        NodeSpec, Place,
        testing::{find, model},
    };

    const PAIR: &str =
        "float[n,3] x \n float[] s = {0.5} \n q = QuantizeLinear(x, s) \n y = DequantizeLinear(q, s) \n ";

    fn fails(text: &str) -> String {
        check(&model(text)).unwrap_err().to_string()
    }

    #[test]
    fn sound_models_pass() {
        check(&model(&format!("{PAIR} return y"))).unwrap();
        check(&model("float[n,3] x \n float[3] s = {1,2,3} \n q = QuantizeLinear <axis = -1>(x, s) \n return q"))
            .unwrap();
    }

    #[test]
    fn wrong_scales_are_named() {
        let error = fails("float[n,3] x \n float[2] s = {1,2} \n q = QuantizeLinear <axis = 1>(x, s) \n return q");
        assert!(error.starts_with("node \"q\" (QuantizeLinear): "), "{error}");
        let per_channel = |s: &str, axis: i64| {
            let text = format!("float[4,3] x \n {s} \n q = QuantizeLinear <axis = {axis}>(x, s) \n return q");
            fails(&text)
        };
        assert!(per_channel("float[2] s = {1,2}", 1).ends_with("the scale has 2 elements, axis 1 of the value has 3"));
        assert!(per_channel("float[3] s = {1,0,1}", 1).ends_with("a scale is 0, must be positive and finite"));
        let signs = |s: &str| {
            format!("int8[4,3] x \n float[3] s = {{{s}}} \n y = DequantizeLinear <axis = 1>(x, s) \n return y")
        };
        check(&model(&signs("1,-1,1"))).unwrap();
        assert!(fails(&signs("1,0,1")).ends_with("a scale is 0, must be finite and not 0"));
        assert!(per_channel("float[3] s = {1,1,1}", 2).ends_with("axis 2 does not exist in rank 2"));
        let zero = "float[4,3] x \n float[] s = {1} \n int32[] z = {0} \n q = QuantizeLinear(x, s, z) \n return q";
        assert!(fails(zero).contains("int32"), "{}", fails(zero));
    }

    #[test]
    fn opsets_and_types() {
        let mut m = model(&format!("{PAIR} return y"));
        m.set_opset("", 9);
        assert!(check(&m).unwrap_err().message().starts_with("needs opset 10"));
        let foreign = model(&format!("{PAIR} z = com.microsoft.Gelu(y) \n return z"));
        assert_eq!(check(&foreign).unwrap_err().message(), "its operator set \"com.microsoft\" is not imported");
        let mixed = format!("{PAIR} z = Mul(q, y) \n return z");
        assert!(fails(&mixed).ends_with("\"q\" is of type uint8, \"y\" of type float"), "{}", fails(&mixed));
    }

    #[test]
    fn order_and_interface() {
        let mut m = model(&format!("{PAIR} return y"));
        let original = m.clone();
        check_interface(&original, &m, None).unwrap();
        let (y, main) = (find(&m, "y"), m.main());
        let early = m.insert(NodeSpec::new("Relu").input(y).output("z"), Place::Start(main));
        assert!(check(&m).unwrap_err().message().contains("before it is made"));
        let z = m.node(early).output(0).unwrap();
        m.add_output(main, z);
        assert_eq!(check_interface(&original, &m, None).unwrap_err().message(), "the model had 1 outputs, now 2");
    }
}
