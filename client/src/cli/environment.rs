//! The environment of a workload's container, on its way to a container or a file on this machine.
//!
//! It may hold secrets: `Debug` shows no value, and no error does.

mod expand;
mod file;
mod flags;
mod name;
mod syntax;

use std::collections::BTreeMap;
use std::fmt;

use tp_protocol::engage::call;

pub(super) use flags::EnvironmentArgs;

use crate::error::{CliError, Result};

/// Variables of a container.
///
/// Invariant: names are not empty and have no `=`; neither names nor values have a NUL, as for any process (environ(7)).
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Environment {
    values_by_name: BTreeMap<String, String>,
}

impl Environment {
    /// Takes what the agent has told, whose container is `of`.
    ///
    /// # Errors
    /// When it has not told, or told what no process can have.
    pub(super) fn from_wire(told: Option<call::Environment>, of: &str) -> Result<Self> {
        let unknown = |why: &str| CliError::user(format!("the environment of {of} is not known: {why}"));
        let told = told.ok_or_else(|| {
            unknown("the traffic manager did not tell it").hint("its version may be older: `tp version` shows both")
        })?;
        if !told.problem.is_empty() {
            return Err(unknown(&told.problem));
        }
        let is_possible =
            |variable: &call::Variable| name::is_possible(&variable.name) && !variable.value.contains('\0');
        if let Some(variable) = told.variables.iter().find(|variable| !is_possible(variable)) {
            return Err(unknown(&format!("it has a variable that no process can have, {:?}", variable.name)));
        }
        Ok(told.variables.into_iter().map(|variable| (variable.name, variable.value)).collect())
    }

    /// The variables, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values_by_name.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of a variable.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values_by_name.get(name).map(String::as_str)
    }

    /// How many variables there are.
    pub(super) fn len(&self) -> usize {
        self.values_by_name.len()
    }

    /// Sets a variable.
    pub(super) fn set(&mut self, name: String, value: String) {
        self.values_by_name.insert(name, value);
    }

    /// Removes a variable, which need not be there.
    pub(super) fn remove(&mut self, name: &str) {
        self.values_by_name.remove(name);
    }

    /// Replaces the references to variables in `text`, as the kubelet does in a container's command.
    pub(super) fn expand(&self, text: &str) -> String {
        expand::expand(text, |name| self.value(name))
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(variables: T) -> Self {
        Self { values_by_name: variables.into_iter().collect() }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values_by_name.keys()).finish()
    }
}

#[cfg(test)]
mod tests;
