//! Mends what rules found, until nothing is left that can be mended.
//!
//! The repairs of one rule are tried together on a copy. They are kept if the model is sound and, by the prediction, no slower; else
//! each half of them is tried, so that one bad repair does not keep the others away.

use serde::Serialize;

use super::{Changes, Context, Finding, Form, Lint, Names, Severity};
use crate::{
    diagnostics::count,
    error::Result,
    ir::Model,
    passes::{self, remove_dead, sort_nodes},
    target::Target,
};

/// After so many rounds it stops: repairs that undo each other are a bug.
const ROUNDS: usize = 10;
/// How often repairs that do not gain together are halved.
const HALVINGS: usize = 4;

/// What one rule mended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fixed {
    /// The rule.
    pub rule: &'static str,
    /// What it did to the numbers.
    pub changes: Vec<Changes>,
    /// What was wrong, a sentence for each.
    pub findings: Vec<String>,
}

/// Repairs that were not kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Withheld {
    /// The rule.
    pub rule: &'static str,
    /// How many.
    pub findings: usize,
    /// Why.
    pub reason: String,
}

/// The state of a model, as far as repairs are judged by it.
#[derive(Clone, Copy)]
struct Standing {
    time: f64,
}

/// Mends a model with some rules; `names` are those of its file. Returns what was mended, and what was tried in vain.
pub fn repair(
    model: &mut Model,
    target: &Target,
    form: Form,
    names: &Names,
    rules: &[&'static Lint],
) -> Result<(Vec<Fixed>, Vec<Withheld>)> {
    let mut fixed: Vec<Fixed> = Vec::new();
    let mut withheld: Vec<Withheld> = Vec::new();
    for _ in 0..ROUNDS {
        let mut changed = false;
        withheld.clear();
        for lint in rules {
            let (found, standing, labels) = {
                let cx = Context::of(model, target, form);
                let mut found = (lint.find)(&cx).unwrap_or_default();
                found.retain(|f| f.repair.is_some());
                let labels: Vec<String> = found.iter().map(|f| names.spot(cx.model, f).sentence(&f.fact)).collect();
                (found, Standing { time: cx.times.total }, labels)
            };
            if found.is_empty() {
                continue;
            }
            let all: Vec<usize> = (0..found.len()).collect();
            let mut done = Vec::new();
            apply(model, target, form, &found, &all, standing, HALVINGS, &mut done)?;
            if done.len() < found.len() {
                let reason = "the model would get slower by the cost model, or nothing would change";
                withheld.push(Withheld {
                    rule: lint.name,
                    findings: found.len() - done.len(),
                    reason: reason.to_owned(),
                });
            }
            if done.is_empty() {
                continue;
            }
            changed = true;
            log::debug!("lint: {} mended by {}", count(done.len(), "finding"), lint.name);
            let at = match fixed.iter().position(|f| f.rule == lint.name) {
                Some(at) => at,
                None => {
                    fixed.push(Fixed { rule: lint.name, changes: Vec::new(), findings: Vec::new() });
                    fixed.len() - 1
                }
            };
            for i in done {
                let changes = found[i].repair.as_ref().map(|r| r.changes.clone());
                for changes in changes.into_iter().filter(|c| !fixed[at].changes.contains(c)).collect::<Vec<_>>() {
                    fixed[at].changes.push(changes);
                }
                fixed[at].findings.push(labels[i].clone());
            }
        }
        if !changed {
            break;
        }
    }
    Ok((fixed, withheld))
}

/// Tries some repairs, and halves of them where they do not gain together. The numbers of those that were kept go to `done`.
#[expect(clippy::too_many_arguments, reason = "the state of a recursion")]
fn apply(
    model: &mut Model,
    target: &Target,
    form: Form,
    found: &[Finding],
    which: &[usize],
    standing: Standing,
    halvings: usize,
    done: &mut Vec<usize>,
) -> Result<Standing> {
    let mut tried = model.clone();
    let run = |i: &usize| found[*i].repair.as_ref().map_or(Ok(false), |repair| (repair.run)(&mut tried));
    let ran: Result<Vec<bool>> = which.iter().map(run).collect();
    if let Ok(ran) = ran {
        if !ran.contains(&true) {
            return Ok(standing);
        }
        remove_dead::run(&mut tried, &mut passes::Context::default())?;
        sort_nodes::run(&mut tried, &mut passes::Context::default())?;
        tried.verify()?;
        let now = Standing { time: Context::of(&tried, target, form).times.total };
        // What is wrong is put right whatever it costs.
        let must = which.iter().any(|&i| found[i].severity == Severity::Error);
        if must || now.time <= standing.time * (1.0 + 1e-9) {
            *model = tried;
            done.extend(which);
            return Ok(now);
        }
    }
    if halvings == 0 || which.len() < 2 {
        return Ok(standing);
    }
    let (a, b) = which.split_at(which.len() / 2);
    let standing = apply(model, target, form, found, a, standing, halvings - 1, done)?;
    apply(model, target, form, found, b, standing, halvings - 1, done)
}
