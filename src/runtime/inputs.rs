//! What the inputs of a loaded model must be, whatever runs it.

use crate::{
    error::{Error, Result},
    ir::{DType, Dim, Model, Tensor, Type},
};

/// One of the inputs that a run must give.
pub(super) struct Input {
    pub(super) name: String,
    dtype: Option<DType>,
    ty: Option<Type>,
}

impl Input {
    /// The required inputs, in their order.
    pub(super) fn of(model: &Model) -> Vec<Self> {
        let input = |v| {
            let value = model.value(v);
            Self { name: value.name().to_owned(), dtype: value.dtype(), ty: value.ty.clone() }
        };
        model.required_inputs().into_iter().map(input).collect()
    }
}

/// Refuses tensors that are not what the model declares, before a runtime sees them.
pub(super) fn check(inputs: &[Input], given: &[Tensor]) -> Result<()> {
    if given.len() != inputs.len() {
        let (want, have) = (inputs.len(), given.len());
        return Err(Error::data(format!("the model has {want} inputs, {have} tensors were given")));
    }
    for (input, tensor) in inputs.iter().zip(given) {
        if let Some(dtype) = input.dtype.filter(|&d| d != tensor.dtype()) {
            let message = format!("the model's input is of type {dtype}, the data of type {}", tensor.dtype());
            return Err(Error::data(message).value(&input.name));
        }
        let Some(shape) = input.ty.as_ref().and_then(Type::shape) else { continue };
        let fits = |(dim, &have): (&Dim, &usize)| dim.known().is_none_or(|want| want == have);
        if shape.dims.len() != tensor.rank() || !shape.dims.iter().zip(tensor.dims()).all(fits) {
            let (want, have) = (shape_text(input.ty.as_ref()), tensor.dims());
            return Err(
                Error::data(format!("the model's input has shape {want}, the data {have:?}")).value(&input.name)
            );
        }
    }
    Ok(())
}

/// A declared shape as the user writes it: `1x3x?xseq`.
pub(super) fn shape_text(ty: Option<&Type>) -> String {
    let Some(shape) = ty.and_then(Type::shape) else { return "of any shape".to_owned() };
    let dim = |d: &Dim| match d {
        Dim::Unknown => "?".to_owned(),
        Dim::Known(n) => n.to_string(),
        Dim::Named(name) => name.clone(),
    };
    format!("[{}]", shape.dims.iter().map(dim).collect::<Vec<_>>().join(", "))
}
