//! The fewest faults with which a world is still broken.

use std::collections::BTreeSet;

/// Worlds that are tried, at most.
const TRIES_MAX: usize = 100;

/// Leaves out faults, halves first and at last single ones, as long as the world `is_broken`
/// without them; the numbers of those that are left out. Without some faults the others meet other
/// moments, so the result need not be the least.
pub fn shrink(
    faults: usize,
    mut is_broken: impl FnMut(&BTreeSet<usize>) -> bool,
) -> BTreeSet<usize> {
    let mut without = BTreeSet::new();
    let mut tries = 0;
    let mut part = faults.div_ceil(2);
    while part > 0 {
        let left: Vec<usize> = (0..faults).filter(|number| !without.contains(number)).collect();
        let mut shrank = false;
        for some in left.chunks(part) {
            if tries == TRIES_MAX {
                return without;
            }
            tries += 1;
            let fewer: BTreeSet<usize> = without.iter().chain(some).copied().collect();
            if is_broken(&fewer) {
                without = fewer;
                shrank = true;
            }
        }
        match part {
            1 if !shrank => return without,
            1 => {}
            _ => part = part.div_ceil(2),
        }
    }
    without
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_stays_and_the_rest_goes() {
        let without = shrink(20, |without| !without.contains(&3) && !without.contains(&17));
        let left: Vec<usize> = (0..20).filter(|number| !without.contains(number)).collect();
        assert_eq!(left, [3, 17]);
        assert_eq!(shrink(5, |_| true).len(), 5);
        assert_eq!(shrink(5, |_| false).len(), 0);
        assert_eq!(shrink(0, |_| true).len(), 0);
    }
}
