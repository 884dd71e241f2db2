//! The table of `qonvert sensitivity`.

use crate::{
    diagnostics::count,
    validate::{
        losses::Loss,
        sensitivity::{Order, Sensitivities, Sensitivity},
    },
};

/// Nodes of a unit that are named.
const NAMED: usize = 3;

/// One line for each unit, the most harmful first, and one for all together; in words what the columns are, and where there are
/// no units.
pub fn render(found: &Sensitivities) -> String {
    if found.units.is_empty() {
        return "nothing is measured: the plan rounds nothing, neither data nor weights\n".to_owned();
    }
    let mut rows = vec![header(&found.all)];
    rows.extend(found.units.iter().map(|unit| {
        let mut row = vec![percent(unit.share)];
        row.extend(figures([&unit.alone, &unit.without], &found.all));
        row.push(names(unit));
        row
    }));
    let mut row = vec![String::new()];
    row.extend(figures([&found.all; 2], &found.all).into_iter().enumerate().map(|(i, text)| match i % 2 {
        0 => text,
        _ => String::new(),
    }));
    row.push(format!("all together: {}", count(found.units.len(), "unit")));
    rows.push(row);
    let mut text = String::new();
    let columns = rows.first().map_or(0, Vec::len);
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let (last, figures) = row.split_last().map_or(("", &row[..]), |(l, f)| (l.as_str(), f));
        for (figure, width) in figures.iter().zip(&widths) {
            text += &format!("{figure:>width$}  ");
        }
        text += last;
        text.push('\n');
    }
    text + &explained(found)
}

fn header(all: &Loss) -> Vec<String> {
    let mut titles = vec!["share"];
    if all.kl().is_some() {
        titles.extend(["KL", "without"]);
    }
    titles.extend(["SQNR", "without"]);
    if all.agreement().is_some() {
        titles.extend(["same", "without"]);
    }
    if all.labels.is_some() {
        titles.extend(["right", "without"]);
    }
    titles.push("nodes");
    titles.into_iter().map(str::to_owned).collect()
}

/// Each figure alone and without.
fn figures(losses: [&Loss; 2], all: &Loss) -> Vec<String> {
    let mut row = Vec::new();
    let mut pair = |text: &dyn Fn(&Loss) -> String| row.extend(losses.map(text));
    if all.kl().is_some() {
        pair(&|l| l.kl().map_or_else(String::new, divergence));
    }
    pair(&decibel);
    if all.agreement().is_some() {
        pair(&|l| l.agreement().map_or_else(String::new, |a| format!("{:.1} %", 100.0 * a)));
    }
    if all.labels.is_some() {
        pair(&|l| l.labels.as_ref().map_or_else(String::new, |r| format!("{:+}", -r.lost())));
    }
    row
}

fn names(unit: &Sensitivity) -> String {
    let mut text: Vec<String> =
        unit.nodes.iter().zip(&unit.ops).take(NAMED).map(|(node, op)| format!("{node} ({op})")).collect();
    if unit.nodes.len() > NAMED {
        text.push(format!("{} more", unit.nodes.len() - NAMED));
    }
    text.join(", ")
}

/// What the columns say.
fn explained(found: &Sensitivities) -> String {
    let all = &found.all;
    let mut text = String::new();
    let mut say = |line: &str| {
        text += line;
        text.push('\n');
    };
    let kind = match (all.outputs.iter().any(|o| o.kl.is_some()), all.outputs.iter().any(|o| o.kl.is_none())) {
        (true, false) => "the divergence",
        (true, true) => "the divergence at an output that holds classes, or the noise at another,",
        _ => "the noise",
    };
    say(&format!("share: {kind} with this unit quantized alone, of the sum of all such, each sample alike"));
    if found.order == Order::Labels {
        say("first come those that lose right answers by the labels, then by share");
    }
    say("without: the figure before it with all quantized but this unit");
    if all.kl().is_some() {
        say("KL: how far the distribution over the classes moves, in nats for each answer; 0.01 is little, 0.1 much");
    }
    if let Some(labels) = &all.labels {
        say(&format!("right: answers won or lost, of {}, {} of them right", labels.count, labels.original));
    }
    text
}

/// The worst output's SQNR in words.
pub fn decibel(loss: &Loss) -> String {
    loss.sqnr.map_or_else(|| "no noise".to_owned(), |sqnr| format!("{sqnr:.1} dB"))
}

fn percent(share: f64) -> String {
    match 100.0 * share {
        p if p >= 1e6 => "> all".to_owned(),
        p if p >= 9.95 => format!("{p:.0} %"),
        p if p >= 0.05 => format!("{p:.1} %"),
        p if p > 0.0 => "0.0 %".to_owned(),
        _ => "0 %".to_owned(),
    }
}

fn divergence(kl: f64) -> String {
    match kl {
        kl if kl >= 1e9 => "lost".to_owned(),
        kl if kl <= 0.0 => "0".to_owned(),
        kl if kl < 1e-3 => format!("{kl:.1e}"),
        kl => format!("{kl:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::losses::{OutputLoss, Rights};

    fn loss(sqnr: Option<f64>, kl: Option<f64>, right: u64) -> Loss {
        let (name, agreement) = ("y".to_owned(), kl.map(|_| 0.985));
        let labels = kl.map(|_| Rights { output: "y".into(), count: 120, original: 100, quantized: right });
        Loss {
            sqnr,
            outputs: vec![OutputLoss {
                name,
                sqnr,
                cosine: 1.0,
                agreement,
                kl,
                noise: 0.0,
                samples: Default::default(),
            }],
            labels,
        }
    }

    fn found(nodes: &[&[&str]], kl: Option<f64>) -> Sensitivities {
        let unit = |nodes: &&[&str]| Sensitivity {
            nodes: nodes.iter().map(|&n| n.to_owned()).collect(),
            ops: vec!["Conv".to_owned(); nodes.len()],
            share: 0.253,
            alone: loss(Some(20.04), kl, 99),
            without: loss(None, kl.map(|_| 0.0), 102),
        };
        let units = nodes.iter().map(unit).collect();
        Sensitivities { order: Order::Loss, all: loss(Some(18.0), kl.map(|kl| 4.0 * kl), 98), units }
    }

    #[test]
    fn one_line_for_each_unit_and_one_for_all() {
        let text = render(&found(&[&["a"], &["b", "c", "d", "e"]], Some(0.0123)));
        let want = [
            "share      KL  without     SQNR   without    same  without  right  without  nodes",
            " 25 %  0.0123        0  20.0 dB  no noise  98.5 %   98.5 %     -1       +2  a (Conv)",
            " 25 %  0.0123        0  20.0 dB  no noise  98.5 %   98.5 %     -1       +2  b (Conv), c (Conv), d (Conv), 1 more",
            "       0.0492           18.0 dB            98.5 %              -2           all together: 2 units",
        ];
        assert_eq!(text.lines().take(4).collect::<Vec<_>>(), want);
        assert!(text.contains("share: the divergence with") && text.contains("of 120, 100 of them right"), "{text}");
        let text = render(&found(&[&["a"]], None));
        assert_eq!(text.lines().nth(1).unwrap(), " 25 %  20.0 dB  no noise  a (Conv)");
        assert!(text.contains("share: the noise with") && !text.contains("KL"), "{text}");
    }

    #[test]
    fn no_unit_is_said_in_words() {
        assert!(render(&found(&[], None)).starts_with("nothing is measured: "));
        assert_eq!(
            [0.0, 1e-5, 0.0123, 0.5, 2.0, 1e9].map(percent),
            ["0 %", "0.0 %", "1.2 %", "50 %", "200 %", "> all"]
        );
        assert_eq!([0.0, 2e-5, 0.5, 1e10].map(divergence), ["0", "2.0e-5", "0.5000", "lost"]);
    }
}
