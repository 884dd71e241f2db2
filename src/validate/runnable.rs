//! Brings a model into a form that the runtime can run, by passes that change nothing of what it computes.

use super::widened::widened;
use crate::{
    error::{ErrorKind, Result},
    ir::Model,
    passes::{
        Context, convert_opset, inline_functions, lift_constants, raise, raise_gather_blocks, raise_matmul_nbits,
        raise_qonnx, raise_qoperators, remove_empty_inputs,
    },
    runtime::Runtime,
};

/// Does `work` with the model in its plain form, and if the runtime refuses that, with its operators upgraded: runtimes
/// may not know the forms of old operator sets. Not at once, so that the proof depends on as few passes as can be.
pub(super) fn in_runnable_form<T>(
    runtime: &dyn Runtime,
    model: &Model,
    work: impl Fn(&Model) -> Result<T>,
) -> Result<T> {
    let mut cx = Context::default();
    let mut plain = model.clone();
    inline_functions::run(&mut plain, &mut cx)?;
    remove_empty_inputs::run(&mut plain, &mut cx)?;
    // No runtime has these.
    raise_qonnx::with_its_constants(&mut plain, &mut cx)?;
    if !runtime.has_halves()
        && let Some(wide) = widened(&plain)?
    {
        plain = wide;
    }
    let raises = !runtime.has_integer_operators();
    if raises {
        // Integer products stay: they are exact as they are, and their float form is so but for rounding.
        lift_constants::run(&mut plain, &mut cx)?;
        raise_qoperators::run(&mut plain, &mut cx)?;
        // tract has operators of its own for these, whose scales are rounded to 16 bits.
        raise_matmul_nbits::run(&mut plain, &mut cx)?;
        raise_gather_blocks::run(&mut plain, &mut cx)?;
    }
    let error = match work(&plain) {
        Err(error) if error.kind() == ErrorKind::Runtime => error,
        done => return done,
    };
    let upgraded = convert_opset::run(&mut plain, &mut cx);
    match upgraded.and_then(|n| Ok(if raises { n + raise(&mut plain, &mut cx)? } else { n })) {
        Ok(1..) => work(&plain).or(Err(error)),
        _ => Err(error),
    }
}
