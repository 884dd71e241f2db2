//! What is known of a search, in a file: a search that is begun again with it goes on where it stopped.

use std::{collections::BTreeMap, fs, io::Read, path::Path};

use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use super::recipe::{Form, Recipe};
use crate::{
    calibrate::dataset::files_of,
    error::{Error, Result},
    files,
    ir::Model,
    report::tune::Figures,
};

/// Changes with what the file means.
const VERSION: u32 = 2;

/// All that is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    version: u32,
    /// What it is known of.
    identity: Identity,
    pub(super) points: Vec<Known>,
    pub(super) noises: Vec<Noises>,
}

/// What must be the same for a search to go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    pub(super) qonvert: String,
    pub(super) model: String,
    pub(super) calibration: String,
    pub(super) evaluation: Option<String>,
    pub(super) seed: u64,
    pub(super) speed: String,
    /// The configuration as YAML.
    pub(super) settings: String,
}

/// A point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    pub(super) recipe: Recipe,
    /// What else makes the same plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) also: Vec<Recipe>,
    /// What tells its plan from others.
    pub(super) plan: String,
    pub(super) figures: Figures,
}

/// The noises that were measured when a point had been made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Noises {
    pub(super) form: Form,
    pub(super) point: usize,
    /// By what is rounded: `value` or `node` and a name.
    pub(super) shares: BTreeMap<String, Vec<f64>>,
}

impl State {
    pub(super) fn new(identity: Identity) -> Self {
        Self { version: VERSION, identity, points: Vec::new(), noises: Vec::new() }
    }

    /// The state in this file, if it is there, or a new one. One of something else is an error that names the difference.
    pub(super) fn open(path: Option<&Path>, identity: Identity) -> Result<Self> {
        let Some(path) = path.filter(|p| p.exists()) else { return Ok(Self::new(identity)) };
        let text = fs::read_to_string(path).map_err(|e| Error::io(path, "read the state", e))?;
        let help = "choose another file for --state, or remove it to begin anew";
        // JSON is YAML, too, and this reader gives every number back as it was; the other may be off by its last bit.
        let state: Self = serde_yaml::from_str(&text)
            .map_err(|e| Error::config(format!("this is no state of qonvert tune: {e}")).file(path).help(help))?;
        if state.version != VERSION {
            let text = format!("is a state of version {}, this qonvert has version {VERSION}", state.version);
            return Err(Error::config(text).file(path).help(help));
        }
        match state.identity.difference(&identity) {
            Some(difference) => {
                Err(Error::config(format!("is the state of another search: {difference}")).file(path).help(help))
            }
            None => match state.points.iter().position(|p| !p.figures.are_possible()) {
                Some(i) => {
                    let text = format!("point {i} has figures that no model can have: {:?}", state.points[i].figures);
                    Err(Error::config(text).file(path).help(help))
                }
                None => Ok(state),
            },
        }
    }

    /// Writes it whole or not at all.
    pub(super) fn save(&self, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let text = serde_json::to_string(self).map_err(|e| Error::bug("the state cannot be written").source(e))?;
        files::write(path, "the state", text.as_bytes())
    }

    /// The point that a recipe makes, if it is known.
    pub(super) fn find(&self, recipe: &Recipe) -> Option<usize> {
        self.points.iter().position(|p| p.recipe == *recipe || p.also.contains(recipe))
    }
}

impl Identity {
    /// The first difference to another, in words.
    fn difference(&self, now: &Self) -> Option<String> {
        let two = |what: &str, then: &str, now: &str| format!("{what} {then} there, {now} now");
        if self.qonvert != now.qonvert {
            return Some(two("qonvert is", &self.qonvert, &now.qonvert));
        }
        if self.model != now.model {
            return Some("the model is another one".to_owned());
        }
        if self.calibration != now.calibration {
            return Some("the calibration data are others".to_owned());
        }
        match (&self.evaluation, &now.evaluation) {
            (a, b) if a == b => {}
            (None, Some(_)) => return Some("it has no evaluation data, and now there are some".to_owned()),
            (Some(_), None) => return Some("it has evaluation data, and now there are none".to_owned()),
            _ => return Some("the evaluation data are others".to_owned()),
        }
        if self.seed != now.seed {
            return Some(two("the seed is", &self.seed.to_string(), &now.seed.to_string()));
        }
        if self.speed != now.speed {
            return Some(two("speeds are by", &self.speed, &now.speed));
        }
        (self.settings != now.settings).then(|| {
            let parse = |text: &str| serde_yaml::from_str::<Value>(text).unwrap_or_default();
            let (path, then, now) = differing(String::new(), &parse(&self.settings), &parse(&now.settings));
            two(&format!("{path} is"), &then, &now)
        })
    }
}

/// The first place where two settings differ, and what stands there.
fn differing(path: String, a: &Value, b: &Value) -> (String, String, String) {
    if let (Value::Mapping(a), Value::Mapping(b)) = (a, b) {
        let mut both = a.iter().filter_map(|(key, x)| Some((key, x, b.get(key)?)));
        if let Some((key, x, y)) = both.find(|(_, x, y)| x != y) {
            let dot = if path.is_empty() { "" } else { "." };
            return differing(format!("{path}{dot}{}", key.as_str().unwrap_or("?")), x, y);
        }
    }
    let text = |v: &Value| serde_yaml::to_string(v).unwrap_or_default().trim().replace('\n', "; ");
    (path, text(a), text(b))
}

/// What tells bytes from others: FNV-1a of 128 bits.
pub(super) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut sum = Digest::default();
    parts.into_iter().for_each(|p| sum.add(p));
    sum.text()
}

struct Digest(u128);

impl Default for Digest {
    fn default() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Digest {
    fn add(&mut self, bytes: &[u8]) {
        const PRIME: u128 = (1 << 88) + 0x13b;
        // The length first, so that parts cannot be taken for one another.
        for &b in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u128::from(b)).wrapping_mul(PRIME);
        }
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let failed = |e| Error::io(path, "read the file", e);
        let mut file = fs::File::open(path).map_err(failed)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => return Ok(()),
                n => self.add(&buffer[..n]),
            }
        }
    }

    fn text(&self) -> String {
        format!("{:032x}", self.0)
    }
}

/// What tells a model from others: its file, and its weights wherever they are.
pub(super) fn identity_of_model(path: &Path, model: &Model) -> Result<String> {
    let mut sum = Digest::default();
    sum.add_file(path)?;
    for v in model.value_ids() {
        if let Some(t) = model.value(v).initializer().filter(|t| t.dtype() != crate::ir::DType::String) {
            sum.add(&t.bytes()?);
        }
    }
    Ok(sum.text())
}

/// What tells data from others: their files and names.
pub(super) fn identity_of_data(path: &Path) -> Result<String> {
    let mut sum = Digest::default();
    let mut all = files_of(path);
    all.sort();
    for file in all {
        sum.add(file.file_name().unwrap_or_default().as_encoded_bytes());
        sum.add_file(&file)?;
    }
    Ok(sum.text())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, FloatWeights};

    fn identity(config: &Config) -> Identity {
        Identity {
            qonvert: "1".into(),
            model: "m".into(),
            calibration: "c".into(),
            evaluation: None,
            seed: 7,
            speed: "model".into(),
            settings: config.to_yaml().unwrap(),
        }
    }

    #[test]
    fn the_difference_is_named() {
        let config = Config::default();
        let now = identity(&config);
        assert_eq!(now.difference(&now.clone()), None);
        let mut changed = config.clone();
        changed.activation.symmetric = true;
        let cases = [
            (Identity { model: "n".into(), ..now.clone() }, "the model is another one"),
            (Identity { seed: 8, ..now.clone() }, "the seed is 8 there, 7 now"),
            (Identity { evaluation: Some("e".into()), ..now.clone() }, "now there are none"),
            (identity(&changed), "activation.symmetric is true there, false now"),
        ];
        for (then, said) in cases {
            let difference = then.difference(&now).unwrap();
            assert!(difference.contains(said), "{difference}");
        }
    }

    #[test]
    fn numbers_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let mut state = State::new(identity(&Config::default()));
        let recipe = Recipe::whole(&Form::of(&Config::default()), FloatWeights::Int8);
        let figures = |x: f64| Figures {
            loss: x,
            noise: x / 3.0,
            sqnr: Some(x.ln()),
            bytes: 1,
            speed: 1.0,
            estimate: 1.0,
            ..Figures::default()
        };
        for i in 1..200 {
            let x = 0.1f64.powi(i % 30) * f64::from(i).sqrt();
            let (also, plan) = (Vec::new(), i.to_string());
            state.points.push(Known { recipe: recipe.clone(), also, plan, figures: figures(x) });
        }
        state.save(Some(&path)).unwrap();
        let again = State::open(Some(&path), identity(&Config::default())).unwrap();
        assert_eq!(again, state);
        assert_eq!(again.find(&recipe), Some(0));
        fs::write(&path, "{").unwrap();
        let e = State::open(Some(&path), identity(&Config::default())).unwrap_err();
        assert!(e.to_string().contains("no state of qonvert tune"), "{e}");
    }

    #[test]
    fn digests_tell_parts_apart() {
        let of = |parts: &[&str]| digest(parts.iter().map(|p| p.as_bytes()));
        assert_eq!(of(&["ab", "c"]), of(&["ab", "c"]));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["ab"]), of(&["ac"]));
    }
}
