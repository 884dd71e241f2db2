//! Names of values while a model is read, whatever it is read from.

use std::collections::HashMap;

use super::{GraphId, Model, ValueId};
use crate::error::{Error, Result};

/// The names that the graphs around the current one declare, the innermost last.
#[derive(Debug, Default)]
pub(crate) struct Scopes(Vec<HashMap<String, ValueId>>);

impl Scopes {
    /// A graph begins.
    pub(crate) fn enter(&mut self) {
        self.0.push(HashMap::new());
    }

    /// The innermost graph ends.
    pub(crate) fn leave(&mut self) {
        self.0.pop();
    }

    /// The value of this name in the innermost graph.
    pub(crate) fn here(&self, name: &str) -> Option<ValueId> {
        self.0.last().and_then(|s| s.get(name).copied())
    }

    /// Makes a value of the innermost graph, which is `graph`. Errors: the name is empty, or taken in this graph.
    pub(crate) fn declare(&mut self, model: &mut Model, graph: GraphId, name: &str) -> Result<ValueId> {
        if name.is_empty() {
            return Err(Error::malformed("a value has no name"));
        }
        if self.here(name).is_some() {
            return Err(Error::malformed("two values of one graph have this name").value(name));
        }
        let scope = self.0.last_mut().ok_or_else(|| Error::bug("no graph is being read").value(name))?;
        let v = model.declare_value(graph, name);
        scope.insert(name.to_owned(), v);
        Ok(v)
    }

    /// The value of this name, in the innermost graph or one around it.
    pub(crate) fn lookup(&self, name: &str) -> Result<ValueId> {
        let found = self.0.iter().rev().find_map(|s| s.get(name).copied());
        found.ok_or_else(|| Error::malformed("is read, but nothing makes it").value(name))
    }
}
