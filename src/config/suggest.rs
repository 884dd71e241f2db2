//! "Did you mean …": the closest of the names that exist.

/// Edits (insert, delete, replace, swap of neighbours) that turn one word into the other. Letter case is free.
pub fn distance(a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|s| s.to_lowercase().chars().collect::<Vec<_>>());
    let mut rows = [vec![0; b.len() + 1], (0..=b.len()).collect::<Vec<_>>(), vec![0; b.len() + 1]];
    for (i, &x) in a.iter().enumerate() {
        let [before, last, row] = &mut rows;
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            row[j + 1] = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && x == b[j - 1] && a[i - 1] == y {
                row[j + 1] = row[j + 1].min(before[j - 1] + 1);
            }
        }
        rows.rotate_left(1);
    }
    rows[1][b.len()]
}

/// Words longer than this are compared by their ends only, so that hostile names cost nothing.
const LONGEST: usize = 200;

/// So many names are shown at most.
const SHOWN: usize = 8;

/// The up to three closest names, the closest first; those that share nothing with the word are left out.
pub fn closest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let word = tail(word);
    let mut scored: Vec<_> = names
        .into_iter()
        .filter_map(|name| {
            let tail = tail(name);
            let d = distance(word, tail);
            let long = word.chars().count().max(tail.chars().count());
            let lower = (tail.to_lowercase(), word.to_lowercase());
            let part = word.len() >= 3 && (lower.0.contains(&lower.1) || tail.len() >= 3 && lower.1.contains(&lower.0));
            // A part counts as closer than its distance says.
            (part || d <= (long / 3).max(1)).then_some((if part { d.min(long / 4 + 1) } else { d }, name))
        })
        .collect();
    scored.sort();
    scored.dedup();
    scored.into_iter().map(|(_, name)| name).take(3).collect()
}

/// Help for a word that is none of the names: the closest ones, else all where they are few.
pub fn help<'a>(word: &str, what: &str, names: impl IntoIterator<Item = &'a str> + Clone) -> String {
    let close = closest(word, names.clone());
    if !close.is_empty() {
        let quoted: Vec<_> = close.iter().map(|n| format!("{n:?}")).collect();
        return format!("did you mean {}?", quoted.join(" or "));
    }
    let mut all: Vec<_> = names.into_iter().collect();
    all.sort_unstable();
    all.dedup();
    if all.is_empty() {
        format!("there are no {what}")
    } else if all.len() <= SHOWN {
        format!("{what}: {}", all.join(", "))
    } else {
        let first: Vec<_> = all.iter().take(SHOWN).copied().collect();
        let more = all.len() - first.len();
        format!("{what}: {} and {more} more, which `qonvert inspect --text MODEL` lists", first.join(", "))
    }
}

fn tail(name: &str) -> &str {
    let start = name.char_indices().rev().nth(LONGEST - 1).map_or(0, |(i, _)| i);
    &name[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        for (a, b, d) in [
            ("", "", 0),
            ("abc", "", 3),
            ("dtype", "dtyp", 1),
            ("conv1", "CONV2", 1),
            ("ab", "ba", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!((distance(a, b), distance(b, a)), (d, d), "{a} {b}");
        }
    }

    #[test]
    fn finds_what_was_meant() {
        let names = ["nodes", "ops", "between", "precision", "weight"];
        assert_eq!(closest("node", names), ["nodes"]);
        assert_eq!(closest("precison", names), ["precision"]);
        assert_eq!(closest("zzz", names), [""; 0]);
        assert_eq!(closest("attention", ["/layer.0/attention/MatMul", "/conv"]), ["/layer.0/attention/MatMul"]);
        assert_eq!(closest(&"x".repeat(100_000), ["y"]), [""; 0]);
        assert_eq!(help("conv", "operators", ["Conv", "Relu"]), "did you mean \"Conv\"?");
        assert_eq!(help("zzz", "operators", ["Relu", "Conv", "Relu"]), "operators: Conv, Relu");
        let many = ["n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9"];
        let said = "nodes: n0, n1, n2, n3, n4, n5, n6, n7 and 2 more, which `qonvert inspect --text MODEL` lists";
        assert_eq!(help("zzzzzz", "nodes", many), said);
    }
}
