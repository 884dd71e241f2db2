//! The rules of the house that a program can check. `ARCHITECTURE.md` says why they are there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The rooms of the library. Each may name those of the rows above it, and none of its own row or below.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["diagnostics", "files"],
    &["ir"],
    &["onnx_file", "quant"],
    &["weights", "ops"],
    &["target"],
    &["runtime", "analysis"],
    &["calibrate", "kernels"],
    &["plan"],
    &["passes"],
    &["validate", "bench", "difference"],
    &["lint"],
    &["config"],
    &["scheme"],
    &["report"],
    &["pipeline"],
];

/// Crates that only one room may name: everything else goes through that room.
const KEEPERS: &[(&str, &str)] = &[
    ("prost", "src/onnx_file/"),
    ("tract_", "src/runtime/tract/"),
    ("ort", "src/runtime/onnxruntime"),
    ("ndarray_npy", "src/calibrate/dataset/"),
    ("image", "src/calibrate/dataset/"),
    ("clap", "src/bin/"),
    ("ctrlc", "src/bin/"),
    ("anyhow", "src/bin/"),
    ("indicatif", "src/bin/"),
    ("env_logger", "src/bin/"),
];

/// Folders whose files are entries of a list: the folder, the list's macro, and what makes a file an entry.
const LISTS: &[(&str, &str, &str)] = &[
    ("src/passes", "passes", "pub fn run("),
    ("src/ops", "ops", " const OPS:"),
    ("src/calibrate/observers", "observers", " const NEEDS:"),
    ("src/weights", "weights", "pub fn round("),
    ("src/analysis/types/rules", "families", " const RULES:"),
    ("src/lint", "lints", " fn find("),
    ("src/bin/qonvert", "subcommands", "pub fn run("),
];

/// What stands at the top of the repository, besides files whose names begin with a dot.
const TOP: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "benches",
    "build.rs",
    "configs",
    "docs",
    "fuzz",
    "models",
    "proto",
    "rustfmt.toml",
    "src",
    "tests",
];

/// Lines of code that a file may have, without its tests.
const MOST_LINES: usize = 500;

/// A file of Rust.
struct Source {
    /// From the root of the package, with `/`.
    path: String,
    text: String,
    /// Without comments and tests; as many lines as the text has up to its tests.
    code: String,
}

impl Source {
    /// Compiled for tests only.
    fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.ends_with("/tests.rs") || self.path.ends_with("/testing.rs")
    }

    /// The folder that its submodules lie in.
    fn folder(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    fn stem(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Path and text of every text file of ours below these places, in order.
fn texts(places: &[&str]) -> Vec<(String, String)> {
    let mut paths = Vec::new();
    for place in places {
        let path = root().join(place);
        if path.is_file() { paths.push(path) } else { files_below(&path, &mut paths) }
    }
    paths.sort();
    let relative = |p: &Path| p.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/");
    paths.iter().filter_map(|p| Some((relative(p), fs::read_to_string(p).ok()?))).collect()
}

fn sources(places: &[&str]) -> Vec<Source> {
    let rust = texts(places).into_iter().filter(|(path, _)| path.ends_with(".rs"));
    rust.map(|(path, text)| Source { code: code_of(&text), path, text }).collect()
}

fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" && lines.peek().is_some_and(|next| *next == "mod tests {") {
            break;
        }
        let line = if line.trim_start().starts_with("//") { "" } else { line };
        code.push_str(line.split(" // ").next().unwrap_or_default());
        code.push('\n');
    }
    code
}

/// The first names of what stands behind `crate::`, be it a path or a group in braces.
fn named_rooms(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c == '$' || c.is_alphanumeric()) {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            rooms.insert(first_word(rest));
            continue;
        };
        let (mut depth, mut fresh) = (0, true);
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => fresh = true,
                c if fresh && c.is_alphabetic() => {
                    rooms.insert(first_word(&group[i..]));
                    fresh = false;
                }
                _ => {}
            }
        }
    }
    rooms
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Whether `word` stands in `text` and is no part of a longer word; with `_` at its end it may go on.
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let after = &text[at + word.len()..];
        !text[..at].ends_with(part) && (word.ends_with('_') || !after.starts_with(part))
    })
}

/// What stands between the braces of the macro's call.
fn list_of<'a>(text: &'a str, list: &str) -> &'a str {
    let start = text.lines().position(|l| l.starts_with(&format!("{list}! {{")));
    let Some(start) = start else { return "" };
    let from: usize = text.split_inclusive('\n').take(start).map(str::len).sum();
    let call = &text[from..];
    &call[..call.find('}').unwrap_or(call.len())]
}

fn no_complaints(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn rooms_name_only_rooms_above_them() {
    let row = |room: &str| LAYERS.iter().position(|row| row.contains(&room));
    let mut complaints = Vec::new();
    let mut found = BTreeSet::new();
    for s in sources(&["src"]) {
        if s.path.starts_with("src/bin/") || s.path == "src/lib.rs" {
            continue;
        }
        let room = first_word(&s.path["src/".len()..]);
        found.insert(room.clone());
        let Some(own) = row(&room) else {
            complaints.push(format!("{}: {room} is a new room: give it a row in LAYERS of tests/tidy.rs", s.path));
            continue;
        };
        if s.is_test() {
            continue;
        }
        for named in named_rooms(&s.code).into_iter().filter(|named| *named != room) {
            match row(&named) {
                Some(row) if row < own => {}
                Some(_) => complaints.push(format!(
                    "{}: {room} may not name {named}, which stands beside or below it in LAYERS of tests/tidy.rs: move \
                     what both need to a room above both, or hand it in as an argument",
                    s.path
                )),
                None => complaints.push(format!(
                    "{}: names crate::{named}, which is no room: name the item by the room that defines it",
                    s.path
                )),
            }
        }
    }
    for room in LAYERS.iter().copied().flatten().filter(|room| !found.contains(**room)) {
        complaints.push(format!("tests/tidy.rs: LAYERS lists {room}, which is gone from src: remove it"));
    }
    no_complaints(&complaints);
}

#[test]
fn foreign_crates_have_one_keeper() {
    let mut complaints = Vec::new();
    for s in sources(&["src"]).iter().filter(|s| !s.is_test()) {
        for (name, keeper) in KEEPERS.iter().filter(|(_, keeper)| !s.path.starts_with(keeper)) {
            let paths = s.code.match_indices("::").any(|(at, _)| {
                let word = s.code[..at].rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                let before = &s.code[..at - word.len()];
                let ours = before.ends_with("::") || before.ends_with('{') || before.ends_with(", ");
                !ours && if name.ends_with('_') { word.starts_with(name) } else { word == *name }
            });
            if paths {
                complaints.push(format!(
                    "{}: names crate {name}, which only {keeper} may: ask for what you need there, in our own types",
                    s.path
                ));
            }
        }
    }
    no_complaints(&complaints);
}

#[test]
fn files_are_short() {
    let mut complaints = Vec::new();
    for s in sources(&["src", "tests", "benches", "build.rs"]) {
        let lines = s.code.lines().count();
        if lines > MOST_LINES {
            complaints.push(format!(
                "{}: {lines} lines without its tests, {MOST_LINES} are the most: split it by what its parts are for",
                s.path
            ));
        }
    }
    no_complaints(&complaints);
}

#[test]
fn files_say_what_they_are_for() {
    let files = sources(&["src", "tests", "benches", "build.rs"]);
    let bare = files.iter().filter(|s| !s.text.starts_with("//! ") && !s.path.ends_with("/tests.rs"));
    no_complaints(&bare.map(|s| format!("{}: does not begin with //! and what it is for", s.path)).collect::<Vec<_>>());
}

#[test]
fn every_file_is_compiled_and_every_entry_listed() {
    let files = sources(&["src"]);
    let mut complaints = Vec::new();
    for s in &files {
        if ["src/lib.rs", "src/bin/qonvert/main.rs"].contains(&s.path.as_str()) {
            continue;
        }
        let (folder, name) = match s.stem() {
            "mod" => s.folder().rsplit_once('/').expect("a folder in src"),
            stem => (s.folder(), stem),
        };
        let parents = ["mod.rs", "lib.rs", "main.rs"].map(|f| format!("{folder}/{f}")).into_iter();
        let parent = parents.chain([format!("{folder}.rs")]).find_map(|p| files.iter().find(|f| f.path == p));
        let Some(parent) = parent else {
            complaints.push(format!("{}: {folder} has no mod.rs that could declare it", s.path));
            continue;
        };
        let list = LISTS.iter().find(|(at, ..)| *at == folder);
        let listed = list.is_some_and(|(_, list, _)| has_word(list_of(&parent.text, list), name));
        let declared = parent.text.lines().any(|l| l.trim_end().ends_with(&format!("mod {name};")));
        match list {
            _ if listed => {}
            Some((_, list, entry)) if s.code.contains(entry) => complaints.push(format!(
                "{}: has `{}` and so is an entry, but `{list}! {{ … }}` in {} does not list it: add {name} there",
                s.path,
                entry.trim(),
                parent.path
            )),
            _ if declared => {}
            _ => complaints.push(format!(
                "{}: nothing compiles it: add `mod {name};` to {} or remove the file",
                s.path, parent.path
            )),
        }
    }
    no_complaints(&complaints);
}

/// What a command line wrote here is not taken along. Files that git does not keep may lie about.
#[test]
fn nothing_strange_is_kept_at_the_top() {
    let root = env!("CARGO_MANIFEST_DIR");
    let kept = std::process::Command::new("git").args(["-C", root, "ls-files"]).output();
    let Some(kept) = kept.ok().filter(|done| done.status.success()) else { return };
    let kept = String::from_utf8(kept.stdout).expect("names are UTF-8");
    let top: BTreeSet<&str> = kept.lines().filter_map(|path| path.split('/').next()).collect();
    let strange: Vec<_> = top.into_iter().filter(|name| !name.starts_with('.') && !TOP.contains(name)).collect();
    assert!(strange.is_empty(), "kept at the top of the repository: {strange:?}");
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = ["todo!", "unimplemented!", "dbg!", "#[ignore", "allow(dead_code", "FIXME", "XXX"];
    let mut complaints = Vec::new();
    // The helpers of tests are a module of each test crate, and none uses all.
    for s in sources(&["src", "tests", "benches", "build.rs"]).iter().filter(|s| s.path != "tests/tidy.rs") {
        for (n, line) in s.text.lines().enumerate() {
            for mark in marks.iter().filter(|m| line.contains(**m)) {
                if !(s.path.starts_with("tests/common/") && mark.starts_with("allow")) {
                    complaints.push(format!("{}:{}: {mark} is a mark of unfinished work: finish it", s.path, n + 1));
                }
            }
        }
    }
    no_complaints(&complaints);
}

#[test]
fn the_library_neither_prints_nor_unwraps() {
    let mut complaints = Vec::new();
    for s in sources(&["src"]).iter().filter(|s| !s.is_test()) {
        for (n, line) in s.code.lines().enumerate() {
            let at = format!("{}:{}", s.path, n + 1);
            if line.contains(".unwrap()") {
                complaints.push(format!(
                    "{at}: unwrap: return an Error that names the place and both numbers, or say in `expect` why it holds"
                ));
            }
            let prints = ["println!", "print!"].iter().any(|p| line.contains(p));
            if prints && !s.path.starts_with("src/bin/") {
                complaints.push(format!("{at}: only src/bin prints: use log, a Diagnostic or the Report"));
            }
        }
    }
    no_complaints(&complaints);
}

/// Paths and words of the places where the project was made: nobody else can follow them.
#[test]
fn the_project_stands_on_its_own() {
    let words = ["/work/", "/root/", "/tmp/", "this session", "issue #", "contracts.md"];
    let places = [
        "src",
        "tests",
        "benches",
        "examples",
        "configs",
        "proto",
        "models",
        ".ci",
        "build.rs",
        "Cargo.toml",
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
    ];
    let mut complaints = Vec::new();
    for (path, text) in texts(&places).iter().filter(|(path, _)| path != "tests/tidy.rs") {
        for (n, line) in text.lines().enumerate() {
            for word in words.iter().filter(|w| line.contains(**w)) {
                complaints.push(format!(
                    "{path}:{}: {word:?} speaks of one machine or one day: say what holds for every reader",
                    n + 1
                ));
            }
        }
    }
    no_complaints(&complaints);
}

#[test]
fn the_checks_see_what_they_should() {
    let code = code_of(
        "use crate::{\n    a::{B, c::D},\n    e,\n};\n/// crate::no\nfn f() -> crate::g::H {} // crate::no\n\
         #[cfg(test)]\nmod tests {\n    use crate::no;\n}\n",
    );
    assert_eq!(named_rooms(&code).into_iter().collect::<Vec<_>>(), ["a", "e", "g"]);
    assert!(has_word("tract_onnx::x", "tract_") && has_word("a ort::b", "ort") && !has_word("sort::b", "ort"));
    assert_eq!(list_of("macro_rules! ops {}\nops! { a, b }\n", "ops"), "ops! { a, b ");
}
