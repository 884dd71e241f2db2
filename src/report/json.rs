//! The report for tools.

use super::Report;
use crate::error::{Error, Result};

/// The report as indented JSON. Numbers that do not exist (SQNR without noise) are `null`.
pub fn render(report: &Report) -> Result<String> {
    let mut text = serde_json::to_string_pretty(report)
        .map_err(|e| Error::bug("the report cannot be written as JSON").source(e))?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::*;

    #[test]
    fn has_the_names_that_tools_rely_on() {
        let report = Report { verdict: Verdict::GateFailed, proof: Some(Proof::default()), ..Report::default() };
        let json: serde_json::Value = serde_json::from_str(&super::render(&report).unwrap()).unwrap();
        assert_eq!(json["verdict"], "gate_failed");
        for key in ["version", "model", "output", "nodes", "size", "proof", "diagnostics", "stages", "peak_memory"] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }
}
