//! Selectors of rules, compiled.

use std::collections::BTreeSet;

use globset::{Glob, GlobMatcher};
use regex::Regex;

use super::outline::Outline;
use crate::{
    config::{Rule, Span, suggest},
    error::{Error, Result},
};

/// A name, glob or regular expression.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    text: String,
    matcher: Matcher,
}

#[derive(Debug, Clone)]
enum Matcher {
    Glob(GlobMatcher),
    Regex(Regex),
    /// No glob: names may hold brackets.
    Exact,
}

impl Pattern {
    /// `/…/` is a regular expression that must be found in the name; all else a glob for the whole name. A name that is
    /// the text itself always fits.
    pub(super) fn new(text: &str) -> Result<Self> {
        let inner = text.strip_prefix('/').and_then(|t| t.strip_suffix('/'));
        let matcher = match inner {
            Some(regex) => Matcher::Regex(
                Regex::new(regex)
                    .map_err(|e| Error::config(format!("/{regex}/ is no regular expression")).source(e))?,
            ),
            None if !text.contains(['*', '?', '[', '{']) => Matcher::Exact,
            None => match Glob::new(text) {
                Ok(glob) => Matcher::Glob(glob.compile_matcher()),
                Err(_) if !text.contains(['*', '?']) => Matcher::Exact,
                Err(e) => return Err(Error::config(format!("{text:?} is no glob")).source(e)),
            },
        };
        Ok(Self { text: text.to_owned(), matcher })
    }

    pub(super) fn fits(&self, name: &str) -> bool {
        name == self.text
            || match &self.matcher {
                Matcher::Glob(glob) => glob.is_match(name),
                Matcher::Regex(regex) => regex.is_match(name),
                Matcher::Exact => false,
            }
    }

    /// What is left of the pattern as a word, to look for names like it.
    fn word(&self) -> String {
        self.text.trim_matches('/').replace(['*', '?'], "")
    }
}

/// The selectors of one rule.
#[derive(Debug, Clone)]
pub(super) struct Selector {
    nodes: Vec<Pattern>,
    ops: Vec<String>,
    between: Option<Span>,
    values: Vec<Pattern>,
}

impl Selector {
    pub(super) fn new(rule: &Rule) -> Result<Self> {
        let all = |list: &[String]| list.iter().map(|t| Pattern::new(t)).collect::<Result<Vec<_>>>();
        let (nodes, values) = (all(&rule.nodes)?, all(&rule.values)?);
        Ok(Self { nodes, ops: rule.ops.clone(), between: rule.between.clone(), values })
    }

    /// Whether it selects values instead of nodes.
    pub(super) fn selects_values(&self) -> bool {
        !self.values.is_empty()
    }

    /// The nodes that fit, as indices into the outline.
    pub(super) fn nodes(&self, outline: &Outline) -> BTreeSet<usize> {
        let fits = |i: &usize| {
            let node = &outline.nodes[*i];
            (self.nodes.is_empty() || self.nodes.iter().any(|p| p.fits(&node.label)))
                && (self.ops.is_empty() || self.ops.contains(&node.op))
        };
        match &self.between {
            Some(Span(from, to)) => {
                outline.between(from, to).map(|found| found.into_iter().filter(fits).collect()).unwrap_or_default()
            }
            None if self.selects_values() => BTreeSet::new(),
            None => (0..outline.nodes.len()).filter(fits).collect(),
        }
    }

    /// The values that fit.
    pub(super) fn values<'a>(&self, outline: &'a Outline) -> BTreeSet<&'a str> {
        outline.values.iter().map(String::as_str).filter(|v| self.values.iter().any(|p| p.fits(v))).collect()
    }

    /// Refuses parts that fit nothing in any of the outlines, with names that were perhaps meant.
    pub(super) fn check(&self, outlines: &[&Outline]) -> Result<()> {
        let labels = || outlines.iter().flat_map(|o| o.nodes.iter().map(|n| n.label.as_str()));
        let ops = || outlines.iter().flat_map(|o| o.nodes.iter().map(|n| n.op.as_str()));
        let values = || outlines.iter().flat_map(|o| o.values.iter().map(String::as_str));
        let none = |text: String, word: &str, what: &str, names: Vec<&str>| {
            Err(Error::config(text).help(suggest::help(word, what, names.iter().copied())))
        };
        for p in &self.nodes {
            if !labels().any(|n| p.fits(n)) {
                return none(format!("no node is called {:?}", p.text), &p.word(), "nodes", labels().collect());
            }
        }
        for op in &self.ops {
            if !ops().any(|o| o == op) {
                return none(format!("the model has no operator {op:?}"), op, "operators", ops().collect());
            }
        }
        for p in &self.values {
            if !values().any(|v| p.fits(v)) {
                return none(format!("no value is called {:?}", p.text), &p.word(), "values", values().collect());
            }
        }
        if let Some(Span(from, to)) = &self.between {
            let found: Vec<_> = outlines.iter().map(|o| o.between(from, to)).collect();
            if found.iter().all(Result::is_err) {
                let name = found[0].as_ref().err().copied().unwrap_or(from);
                let names = labels().chain(values()).collect();
                return none(format!("no value or node is called {name:?}"), name, "names", names);
            }
            if found.iter().flatten().all(BTreeSet::is_empty) {
                return Err(Error::config(format!("no way leads from {from:?} to {to:?}"))
                    .help("between: [from, to] names them in the direction of the data"));
            }
        }
        let empty = |o: &&Outline| self.nodes(o).is_empty() && self.values(o).is_empty();
        if outlines.iter().all(empty) {
            return Err(Error::config("no node fits all of its selectors").help(
                "a node must fit nodes, ops and between, where they are given; make several rules for several choices",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let fits = |p: &str, name: &str| Pattern::new(p).unwrap().fits(name);
        assert!(fits("conv1", "conv1") && !fits("conv", "conv1"));
        assert!(fits("/model/*", "/model/a/b") && fits("*.fc?", "layer.fc1"));
        assert!(fits("/^conv[0-9]+$/", "conv12") && !fits("/^conv[0-9]+$/", "xconv12"));
        assert!(fits("a[0]", "a[0]") && fits("a[0]", "a0")); // the name itself, or as a glob
        assert!(fits("/block/", "/block/") && fits("/block/", "x/block_1"));
        assert!(fits("a[", "a["));
        assert!(Pattern::new("/(/").is_err() && Pattern::new("*[").is_err());
    }
}
