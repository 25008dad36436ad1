//! Network configurations as JSON. Whatever is not ours stays as it is, in its order.
//!
//! Before: a file's text. After: the text to replace it with.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::PluginOptions;
use crate::cni::PLUGIN;
use crate::config;

/// A configuration that runtimes use.
#[derive(Clone, Debug)]
pub enum Network {
    /// `*.conflist`: a chain of plugins.
    List(ConfList),
    /// `*.conf` or `*.json`: one plugin.
    Single(Single),
}

/// A chain of plugins.
#[derive(Clone, Debug)]
pub struct ConfList {
    /// All fields, in their order; `plugins` is there, and empty.
    fields: Map<String, Value>,
    plugins: Vec<Value>,
}

/// One plugin that has a network of its own.
#[derive(Clone, Debug)]
pub struct Single(Map<String, Value>);

/// Our plugin in a chain.
#[derive(Clone, Debug)]
pub struct Entry(Value);

impl Entry {
    /// What `options` say, as it is written.
    pub fn of(options: &PluginOptions) -> Self {
        let mut entry = json!({
            "type": PLUGIN,
            // Runtimes that know it hand over the annotations of the pod; others pass it over.
            "capabilities": {"io.kubernetes.cri.pod-annotations": true},
            "agentSocket": options.agent_socket,
            "timeout": config::write_duration(options.timeout),
            "onAgentAbsent": options.on_agent_absent.name(),
        });
        if let Some(path) = &options.log_file {
            entry["logFile"] = json!(path);
        }
        Self(entry)
    }
}

impl Network {
    /// Reads the text of the file at `path`, whose name says which kind it is.
    ///
    /// # Errors
    /// Why no runtime would use it.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, String> {
        let value = serde_json::from_slice(text).map_err(|error| format!("it is not JSON: {error}"))?;
        let Value::Object(mut object) = value else { return Err("it is not a JSON object".to_owned()) };
        if path.extension().is_some_and(|extension| extension == "conflist") {
            let plugins = match object.get_mut("plugins") {
                Some(Value::Array(plugins)) if !plugins.is_empty() => std::mem::take(plugins),
                _ => return Err("it has no plugins".to_owned()),
            };
            return Ok(Self::List(ConfList { fields: object, plugins }));
        }
        match object.get("type") {
            Some(Value::String(name)) if !name.is_empty() => Ok(Self::Single(Single(object))),
            _ => Err("it has no type".to_owned()),
        }
    }
}

impl Single {
    /// The chain that does the same.
    pub fn into_list(mut self) -> ConfList {
        let mut fields = Map::new();
        for key in ["cniVersion", "name"] {
            if let Some(value) = self.0.shift_remove(key) {
                fields.insert(key.to_owned(), value);
            }
        }
        fields.insert("plugins".to_owned(), json!([]));
        ConfList { fields, plugins: vec![Value::Object(self.0)] }
    }
}

impl ConfList {
    /// Puts our entry at the end of the chain, or where it already is; whether that changed anything.
    pub fn put(&mut self, Entry(entry): Entry) -> bool {
        match self.plugins.iter_mut().find(|plugin| is_ours(plugin)) {
            Some(there) if *there == entry => return false,
            Some(there) => *there = entry,
            None => self.plugins.push(entry),
        }
        true
    }

    /// Takes our entry out; whether it was there.
    pub fn take(&mut self) -> bool {
        let before = self.plugins.len();
        self.plugins.retain(|plugin| !is_ours(plugin));
        self.plugins.len() < before
    }

    /// As it is written.
    pub fn text(mut self) -> Vec<u8> {
        self.fields.insert("plugins".to_owned(), Value::Array(self.plugins));
        // A JSON object always serialises.
        let mut text = serde_json::to_vec_pretty(&self.fields).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == PLUGIN
}
