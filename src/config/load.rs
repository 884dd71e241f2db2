//! Presets and files on top of each other.

use std::path::Path;

use serde_yaml::Value;

use super::{Config, Rule, suggest, words};
use crate::{
    error::{Error, Result},
    target::Target,
};

macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        /// Name and text of every built-in preset; the first is the base of all others.
        pub(super) const PRESETS: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../configs/", $name, ".yaml")))),*];
    };
}

presets! { "int8", "int8-dynamic", "int8-symmetric", "int8-per-tensor", "int8-reduce-range", "int4" }

/// A preset may build on another; more than this is a circle.
const DEEPEST: usize = 8;

impl Config {
    /// The preset (a name or a file; `int8` if `None` and the file names none), and the file on top of it.
    pub fn load(preset: Option<&str>, file: Option<&Path>) -> Result<Self> {
        let over = match file {
            Some(path) => Some(Layer::read(path)?),
            None => None,
        };
        let named = over.as_ref().and_then(|o| o.preset.clone());
        let mut value = match preset.map(str::to_owned).or(named) {
            Some(name) => preset_value(&name, DEEPEST)?,
            None => preset_value(PRESETS[0].0, DEEPEST)?,
        };
        if let Some(over) = over {
            merge(&mut value, over.value, true);
        }
        read(value)
    }

    /// A configuration from the text of one file, its preset below it.
    pub fn from_yaml(text: &str) -> Result<Self> {
        let over = Layer::parse(text, None)?;
        let mut value = preset_value(over.preset.as_deref().unwrap_or(PRESETS[0].0), DEEPEST)?;
        merge(&mut value, over.value, true);
        read(value)
    }

    /// The whole configuration as YAML; [`Config::from_yaml`] gives the same again.
    pub fn to_yaml(&self) -> Result<String> {
        serde_yaml::to_string(self).map_err(|e| Error::bug("the configuration cannot be written as YAML").source(e))
    }
}

/// Rules alone, as a file for `--config`.
pub fn rules_yaml(rules: &[Rule]) -> Result<String> {
    let file = std::collections::BTreeMap::from([("rules", rules)]);
    serde_yaml::to_string(&file).map_err(|e| Error::bug("the rules cannot be written as YAML").source(e))
}

/// One file or preset: what it says, checked by itself so that errors name its lines.
struct Layer {
    preset: Option<String>,
    value: Value,
}

impl Layer {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read the configuration", e))?;
        Self::parse(&text, path.parent()).map_err(|e| e.file(path))
    }

    /// Files that it names are looked for in `folder` first.
    fn parse(text: &str, folder: Option<&Path>) -> Result<Self> {
        let mut value: Value = serde_yaml::from_str(text).map_err(|e| tidy(&e))?;
        value.apply_merge().map_err(|e| tidy(&e))?;
        if value.is_null() {
            return Ok(Self { preset: None, value });
        }
        let written: Config = serde_yaml::from_str(text).map_err(|e| tidy(&e))?;
        // Read from text, a number may stand for words; read from what is merged it may not.
        if let Some((key, e)) = first_misfit(&value) {
            let starts = |line: &str| line.trim_start().starts_with(&format!("{key}:"));
            let line = text.lines().position(starts).map(|i| format!("line {}: ", i + 1)).unwrap_or_default();
            let said = words::plain(&e.to_string()).unwrap_or(e.to_string());
            return Err(
                Error::config(format!("{line}{key}: {said}")).help("put text that looks like a number in quotes")
            );
        }
        let beside = |name: &str| folder.map(|f| f.join(name)).filter(|p| p.is_file()).map(|p| p.display().to_string());
        let mut preset = written.preset;
        if let Some(name) = preset.as_mut().filter(|n| super::preset_text(n).is_none()) {
            *name = beside(name).unwrap_or_else(|| name.clone());
        }
        if let Some(map) = value.as_mapping_mut() {
            map.remove("preset");
            if let Some(Value::String(name)) =
                map.get_mut("target").filter(|_| Target::names().all(|n| n != written.target))
            {
                *name = beside(name).unwrap_or_else(|| name.clone());
            }
        }
        Ok(Self { preset, value })
    }
}

/// The configuration that all layers come to.
fn read(value: Value) -> Result<Config> {
    serde_yaml::from_value(value).map_err(|e| Error::bug("the merged configuration cannot be read").source(e))
}

/// The first key at the top whose value cannot be read.
fn first_misfit(value: &Value) -> Option<(&str, serde_yaml::Error)> {
    value.as_mapping()?.iter().find_map(|(key, value)| {
        let alone = Value::Mapping([(key.clone(), value.clone())].into_iter().collect());
        serde_yaml::from_value::<Config>(alone).err().and_then(|e| Some((key.as_str()?, e)))
    })
}

fn preset_value(name: &str, deepest: usize) -> Result<Value> {
    if deepest == 0 {
        return Err(Error::config(format!("preset {name:?} builds on itself")));
    }
    let layer = match super::preset_text(name) {
        Some(text) => Layer::parse(text, None)?,
        None if Path::new(name).is_file() => Layer::read(Path::new(name))?,
        None => {
            let known: Vec<_> = super::preset_names().collect();
            let mut help = format!("presets: {}", known.join(", "));
            if let [close, ..] = suggest::closest(name, known)[..] {
                help = format!("did you mean {close:?}? {help}");
            }
            return Err(Error::config(format!("no preset is called {name:?}, and no file has this name")).help(help));
        }
    };
    if name == PRESETS[0].0 {
        return Ok(layer.value);
    }
    let mut value = preset_value(layer.preset.as_deref().unwrap_or(PRESETS[0].0), deepest - 1)?;
    merge(&mut value, layer.value, true);
    Ok(value)
}

/// Puts `over` on top: mappings key by key, rules behind those that are there, all else instead of what is there.
fn merge(base: &mut Value, over: Value, top: bool) {
    match (base, over) {
        (Value::Mapping(base), Value::Mapping(over)) => {
            for (key, value) in over {
                let rules = top && key.as_str() == Some("rules");
                match (base.get_mut(&key), value) {
                    (Some(Value::Sequence(there)), Value::Sequence(more)) if rules => there.extend(more),
                    (Some(there), value) => merge(there, value, false),
                    (None, value) => drop(base.insert(key, value)),
                }
            }
        }
        (_, Value::Null) if top => {} // an empty file says nothing
        (base, over) => *base = over,
    }
}

/// serde_yaml's message with the line in front, and the closest of the expected words as help.
fn tidy(error: &serde_yaml::Error) -> Error {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text);
    let line = error.location().map(|l| format!("line {}: ", l.line())).unwrap_or_default();
    let words: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    let (path, fact) = match text.find("unknown ") {
        Some(at) => (text[..at].trim_end_matches(": "), &text[at..]),
        None => ("", text),
    };
    let place = if path.is_empty() { String::new() } else { format!(" in {path}") };
    match words[..] {
        [word, ref expected @ ..] if fact.starts_with("unknown field") => {
            Error::config(format!("{line}unknown key {word:?}{place}")).help(help(word, "known keys", expected))
        }
        [word, ref expected @ ..] if fact.starts_with("unknown variant") => {
            Error::config(format!("{line}{word:?} is none of the choices{place}")).help(help(word, "choices", expected))
        }
        _ => match words::plain(text) {
            Some(said) => Error::config(format!("{line}{said}")),
            None => Error::config(format!("{line}{text}")),
        },
    }
}

fn help(word: &str, what: &str, expected: &[&str]) -> String {
    let all = format!("{what}: {}", expected.join(", "));
    match suggest::closest(word, expected.iter().copied())[..] {
        [close, ..] => format!("did you mean {close:?}? {all}"),
        [] => all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{FloatWeights, Precision, Span, preset_names, preset_text},
        ir::DType,
    };

    #[test]
    fn presets_parse_and_round_trip() {
        assert_eq!(Config::load(None, None).unwrap(), Config::default());
        for name in preset_names() {
            let config = Config::load(Some(name), None).unwrap();
            config.check().unwrap();
            let again = Config::from_yaml(&config.to_yaml().unwrap()).unwrap();
            assert_eq!(config, again, "{name}");
            assert_eq!(name == "int8", config == Config::default(), "{name}");
        }
    }

    /// The default preset is also the documentation: it names every key, and says something of each.
    #[test]
    fn the_default_preset_documents_every_key() {
        let text = preset_text("int8").unwrap();
        let full: Value = serde_yaml::from_str(&Config::default().to_yaml().unwrap()).unwrap();
        let written: Value = serde_yaml::from_str(text).unwrap();
        assert_eq!(full, written);
        for line in text.lines().filter(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#')) {
            assert!(line.contains('#') || line.ends_with(':'), "no comment: {line}");
        }
    }

    #[test]
    fn a_file_says_only_what_differs() {
        let text = "preset: int8-symmetric\nweight: {per_channel: false}\nfloat_weights: keep\ncalibration:\n  samples: null\n  image: {mean: 0.5}\n\
                    rules:\n- {nodes: '*.head', ops: [Gemm, MatMul], precision: float}\n- {between: [a, b], activation: {range: [0, 6]}}\n- nodes: 12\n";
        let c = Config::from_yaml(text).unwrap();
        assert_eq!((c.activation.symmetric, c.activation.dtype, c.weight.dtype), (true, DType::Int8, DType::Int8));
        assert_eq!((c.weight.per_channel, c.float_weights, c.calibration.samples), (false, FloatWeights::Keep, None));
        assert_eq!((&c.calibration.image.mean[..], &c.calibration.image.std[..]), (&[0.5][..], &[1.0][..]));
        assert_eq!(c.rules[0].nodes, ["*.head"]);
        assert_eq!((c.rules[0].ops.len(), c.rules[0].precision), (2, Some(Precision::Float)));
        assert_eq!(c.rules[1].between, Some(Span("a".to_owned(), "b".to_owned())));
        assert_eq!(
            (c.rules[1].activation.as_ref().unwrap().range, &c.rules[2].nodes[..]),
            (Some([0.0, 6.0]), &["12".to_owned()][..])
        );
        assert_eq!(Config::from_yaml(&c.to_yaml().unwrap()).unwrap(), c);
        assert_eq!(Config::from_yaml("").unwrap(), Config::default());
        assert_eq!(Config::from_yaml("# nothing\n").unwrap(), Config::default());
    }

    #[test]
    fn wrong_files_say_where_and_what() {
        let cases = [
            ("wieght:\n", "line 1: unknown key \"wieght\"", "did you mean \"weight\"?"),
            ("weight:\n  dtyp: int8\n", "line 2: unknown key \"dtyp\" in weight", "did you mean \"dtype\"?"),
            ("\nrules:\n- nodes: a\n  precison: float\n", "line 4: unknown key \"precison\" in rules[0]", "precision"),
            (
                "float_weights: int4\n",
                "line 1: \"int4\" is none of the choices in float_weights",
                "did you mean \"int8\"?",
            ),
            ("weight: {dtype: int7}\n", "line 1: weight: \"int7\" is no element type", ""),
            ("weight: [1]\n", "line 1: weight: a list stands here, keys with values are expected", ""),
            ("proof: {min_sqnr: abc}\n", "line 1: proof.min_sqnr: \"abc\" stands here, a number is expected", ""),
            (
                "calibration:\n  samples: -1\n",
                "line 2: calibration.samples: -1 stands here, a whole number, 0 or more, is expected",
                "",
            ),
            ("smooth: maybe\n", "line 1: smooth: \"maybe\" stands here, true or false is expected", ""),
            ("\ntarget: 5\n", "line 2: target: 5 stands here, text is expected", "quotes"),
            ("rules:\n- between: [a]\n", "line 2: rules[0].between: invalid length 1", ""),
            ("preset: int88\n", "no preset is called \"int88\"", "did you mean \"int8\"?"),
            ("a: [\n", "did not find", ""),
            ("- a\n", "a list stands here, keys with values are expected", ""),
        ];
        for (text, message, help) in cases {
            let e = Config::from_yaml(text).unwrap_err();
            assert!(e.to_string().contains(message), "{text}: {e}");
            assert!(e.help_text().unwrap_or_default().contains(help), "{text}: {:?}", e.help_text());
        }
    }

    #[test]
    fn files_name_files_beside_them() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        write("base.yaml", "preset: int8-per-tensor\nrules: [{nodes: a, precision: float}]\n");
        let top = write("top.yaml", "preset: base.yaml\nrules: [{nodes: b, precision: float}]\n");
        let c = Config::load(None, Some(&top)).unwrap();
        assert!(!c.weight.per_channel);
        assert_eq!(c.rules, [Rule::keep_float("a"), Rule::keep_float("b")]);
        // The flag wins over the file's preset.
        assert!(Config::load(Some("int8"), Some(&top)).unwrap().weight.per_channel);
        let circle = write("circle.yaml", "preset: circle.yaml\n");
        assert!(Config::load(None, Some(&circle)).unwrap_err().to_string().contains("builds on itself"));
        let wrong = write("wrong.yaml", "x: 1\n");
        assert!(Config::load(None, Some(&wrong)).unwrap_err().to_string().contains("wrong.yaml: line 1"));
    }
}
