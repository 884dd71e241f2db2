//! The table of `qonvert sensitivity`.

use crate::validate::sensitivity::{Answers, Sensitivities};

/// One line for each unit, the most harmful first.
pub fn render(found: &Sensitivities) -> String {
    let classes = found.all.agreement.is_some();
    let mut text = format!("{:>10}  {:>10}", "alone", "without");
    if classes {
        text += &format!("  {:>8}  {:>8}", "same", "without");
    }
    text += "  nodes\n";
    for unit in &found.units {
        text += &format!("{:>10}  {:>10}", decibel(unit.alone), decibel(unit.without));
        if classes {
            text += &format!("  {:>8}  {:>8}", share(unit.alone), share(unit.without));
        }
        let first = unit.nodes.first().map(String::as_str).unwrap_or_default();
        let op = unit.ops.first().map(String::as_str).unwrap_or_default();
        text += &format!("  {first} ({op})");
        if unit.nodes.len() > 1 {
            text += &format!(" to {}, {} nodes", unit.nodes[unit.nodes.len() - 1], unit.nodes.len());
        }
        text.push('\n');
    }
    text
}

/// The worst output's SQNR in words.
pub fn decibel(answers: Answers) -> String {
    answers.sqnr.map_or_else(|| "no noise".to_owned(), |sqnr| format!("{sqnr:.1} dB"))
}

fn share(answers: Answers) -> String {
    answers.agreement.map_or_else(String::new, |a| format!("{:.1} %", 100.0 * a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::sensitivity::Sensitivity;

    #[test]
    fn one_line_for_each_unit() {
        let answers = |sqnr, agreement| Answers { sqnr, agreement };
        let unit = |nodes: &[&str]| Sensitivity {
            nodes: nodes.iter().map(|&n| n.to_owned()).collect(),
            ops: vec!["Conv".to_owned(); nodes.len()],
            alone: answers(Some(20.04), Some(0.985)),
            without: answers(None, Some(1.0)),
        };
        let mut found =
            Sensitivities { all: answers(Some(18.0), Some(0.97)), units: vec![unit(&["a"]), unit(&["b", "c", "d"])] };
        let want = [
            "     alone     without      same   without  nodes",
            "   20.0 dB    no noise    98.5 %   100.0 %  a (Conv)",
            "   20.0 dB    no noise    98.5 %   100.0 %  b (Conv) to d, 3 nodes",
        ];
        assert_eq!(render(&found).lines().collect::<Vec<_>>(), want);
        found.all.agreement = None;
        assert_eq!(render(&found).lines().nth(1).unwrap(), "   20.0 dB    no noise  a (Conv)");
    }
}
