//! The target of a configuration, and whether it has what is asked for.

use crate::{
    config::{Config, Numbers, suggest},
    error::{Error, Result},
    target::Target,
};

/// The target on the processor that is asked for.
pub(super) fn on_cpu(target: Target, cpu: Option<&str>) -> Result<Target> {
    let Some(cpu) = cpu else { return Ok(target) };
    let known: Vec<_> = target.cpus().collect();
    let hint = suggest::closest(cpu, known.iter().copied()).first().map(|c| format!("did you mean {c:?}? "));
    let help = match known.is_empty() {
        true => "leave --cpu out, or list its cpus in the target's file".to_owned(),
        false => format!("{}cpus: {}", hint.unwrap_or_default(), known.join(", ")),
    };
    target.on_cpu(cpu).map_err(|e| e.help(help))
}

/// Refuses numbers that the target does not have.
pub(super) fn check_target(config: &Config, target: &Target) -> Result<()> {
    let name = &target.name;
    match config.precision.float8() {
        None if target.is_for_float8() && config.precision == Numbers::Int8 => {
            let text = format!("target {name} is described for floats of 8 bits alone");
            Err(Error::config(text).help("add --precision fp8, or leave --target out"))
        }
        Some(dtype) if !target.float8.has(dtype) => {
            let known: Vec<_> = target.float8.types.iter().map(|d| d.name()).collect();
            let text = format!(
                "precision {} is {dtype}, but target {name} takes {}",
                config.precision.name(),
                known.join(", ")
            );
            Err(Error::config(text).help("choose another precision, or another target"))
        }
        _ => Ok(()),
    }
}
