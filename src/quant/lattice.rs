//! The codes of numbers that were rounded, when nothing is left but the numbers.
//!
//! Exporters compute what depends on constants alone, so that of a quantized weight only the rounded numbers remain. They are
//! multiples of one step; the step that is found is the largest one that makes whole numbers of all.

/// How far a quotient may be from a whole number, as a share of it: numbers have 24 bits, codes up to 8.
const NEAR: f64 = 4e-6;
/// The last bit of the greatest number, as a share of it.
const LAST_BIT: f64 = f32::EPSILON as f64;
/// The greatest code looked for, of int8.
const GREATEST: i32 = 128;

/// The steps by which numbers are multiples, one for each channel, with the multiples; element `i` belongs to channel
/// `i / inner % channels`. `None` where there is no such step, or too little to tell it from chance.
///
/// Channels whose multiples have a common divisor, as those of one number only, get the greatest code that others have.
pub fn steps(numbers: &[f32], channels: usize, inner: usize) -> Option<(Vec<f32>, Vec<i32>)> {
    let mut by_channel: Vec<Vec<f64>> = vec![Vec::new(); channels];
    for (i, &x) in numbers.iter().enumerate() {
        let sizes = &mut by_channel[i / inner % channels];
        if x != 0.0 {
            sizes.push(f64::from(x.abs()));
        }
    }
    let mut telling = 0;
    let mut found = Vec::with_capacity(channels);
    for sizes in &mut by_channel {
        sizes.sort_by(f64::total_cmp);
        telling += sizes.len().saturating_sub(1);
        sizes.dedup();
        found.push(greatest_code(sizes)?);
    }
    // Two numbers may be multiples of some step by chance; a dozen are not.
    (telling >= 12).then_some(())?;
    let most = found.iter().copied().max()?;
    let step = |(sizes, &code): (&Vec<f64>, &i32)| {
        let code = if code > 0 && most % code == 0 { most } else { code };
        sizes.last().map_or(1.0, |s| s / f64::from(code.max(1)))
    };
    let scales: Vec<f64> = by_channel.iter().zip(&found).map(step).collect();
    let multiples =
        numbers.iter().enumerate().map(|(i, &x)| (f64::from(x) / scales[i / inner % channels]).round() as i32);
    let multiples = multiples.collect();
    Some((scales.into_iter().map(|s| s as f32).collect(), multiples))
}

/// The least code that the greatest of these sizes may have; 0 where there are none.
fn greatest_code(sizes: &[f64]) -> Option<i32> {
    let Some(&most) = sizes.last() else { return Some(0) };
    if !most.is_finite() {
        return None;
    }
    (1..=GREATEST).find(|&code| are_multiples(sizes, most, code))
}

/// Whether all sizes are whole numbers of steps, of which the greatest has so many.
fn are_multiples(sizes: &[f64], most: f64, code: i32) -> bool {
    sizes.iter().all(|s| {
        let multiple = s / most * f64::from(code);
        // Small ones may be differences of large ones, as off as these.
        let off = NEAR * multiple + LAST_BIT * f64::from(code);
        multiple.round() >= 1.0 && (multiple - multiple.round()).abs() <= off
    })
}

/// How many levels numbers have that lie evenly on both sides of 0, none of them on it, where 8 bits have as many codes but no
/// whole zero point for them.
pub fn levels_beside_zero(numbers: &[f32]) -> Option<i32> {
    let mut sizes: Vec<f64> = numbers.iter().map(|x| f64::from(x.abs())).collect();
    sizes.sort_by(f64::total_cmp);
    let most = sizes.last().copied().filter(|m| m.is_finite() && sizes[0] > 0.0 && sizes.len() > 12)?;
    sizes.dedup();
    if greatest_code(&sizes).is_some() {
        return None;
    }
    let odd = |code: i32| sizes.iter().all(|s| (s / most * f64::from(code)).round() % 2.0 == 1.0);
    (GREATEST + 1..=2 * GREATEST).find(|&code| are_multiples(&sizes, most, code) && odd(code)).map(|code| code + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_again() {
        let codes: Vec<i32> = (0..60).map(|i| i * 37 % 255 - 127).collect();
        let numbers: Vec<f32> = codes.iter().map(|&c| c as f32 * 0.0173).collect();
        let (scales, found) = steps(&numbers, 1, 60).unwrap();
        assert_eq!(found, codes);
        assert!((scales[0] / 0.0173 - 1.0).abs() < 1e-6, "{scales:?}");
        let other: Vec<f32> = (0..60).map(|i| (i as f32 * 0.7).sin()).collect();
        assert!(steps(&other, 1, 60).is_none());
    }

    #[test]
    fn levels_without_zero() {
        let numbers: Vec<f32> = (0..60).map(|i| (i * 37 % 256) as f32 / 255.0 * 2.0 - 1.0).collect();
        assert_eq!(levels_beside_zero(&numbers), Some(256));
        assert!(steps(&numbers, 1, 60).is_none());
        assert_eq!(levels_beside_zero(&[0.3; 20]), None);
        let other: Vec<f32> = (1..60).map(|i| (i as f32 * 0.7).sin()).collect();
        assert_eq!(levels_beside_zero(&other), None);
    }

    #[test]
    fn channels_of_few_numbers_follow_the_others() {
        // The third channel has one size only, the fourth none.
        let codes = [[7, -3, 2, 5, 1, 6, -4], [-7, 1, 2, 3, 5, 6, 4], [7, -7, 0, 7, 0, 7, 7], [0; 7]];
        let scales = [0.1f32, 0.33, 0.02, 1.0];
        let numbers: Vec<f32> =
            codes.iter().zip(scales).flat_map(|(row, s)| row.iter().map(move |&c| c as f32 * s)).collect();
        let (_, found) = steps(&numbers, 4, 7).unwrap();
        assert_eq!(found, codes.concat());
        // Two numbers say nothing.
        assert!(steps(&[0.3, 0.7], 1, 2).is_none());
    }
}
