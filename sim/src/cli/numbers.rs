//! Numbers of arguments: what is wrong with one, and what may be written instead.
//!
//! Owns the reading of counts, of lists with commas, and of `never`. Knows no argument by name.

/// A whole number from `MIN` to `MAX`.
pub(super) fn whole<T: TryFrom<u64>, const MIN: u64, const MAX: u64>(
    text: &str,
) -> Result<T, String> {
    let number = text.trim().parse().ok().filter(|number| (MIN..=MAX).contains(number));
    let fits = number.and_then(|number| T::try_from(number).ok());
    fits.ok_or_else(|| match MAX {
        u64::MAX => format!("write a whole number, {MIN} or more"),
        _ => format!("write a whole number from {MIN} to {MAX}"),
    })
}

/// A number that is not negative.
pub(super) fn positive_or_zero(text: &str) -> Result<f64, String> {
    let number = text.trim().parse().ok().filter(|number: &f64| number.is_finite());
    number.filter(|number| *number >= 0.0).ok_or("write a number, 0 or more".to_owned())
}

/// So many values with commas between them; `shape` shows how they are written.
pub(super) fn parts<'a, const N: usize>(
    text: &'a str,
    shape: &str,
) -> Result<[&'a str; N], String> {
    let parts: Vec<&str> = text.split(',').collect();
    parts.try_into().map_err(|_| format!("write {N} values with commas between them: {shape}"))
}

/// What an argument takes, or that the thing is not there at all.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct OrNever<T>(pub(super) Option<T>);

/// `never`, or what `read` reads.
pub(super) fn or_never<T, E: ToString>(
    text: &str,
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<OrNever<T>, String> {
    if text.trim() == "never" {
        return Ok(OrNever(None));
    }
    let read = read(text).map_err(|error| format!("{}; or never", error.to_string()))?;
    Ok(OrNever(Some(read)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_told_what_may_be_written() {
        let nodes = |text| whole::<u32, 2, 200>(text);
        assert_eq!(nodes("200"), Ok(200));
        for wrong in ["-1", "1", "201", "2.0", "", "ten", "99999999999999999999999"] {
            assert_eq!(nodes(wrong), Err("write a whole number from 2 to 200".to_owned()));
        }
        assert_eq!(whole::<u64, 0, { u64::MAX }>("18446744073709551615"), Ok(u64::MAX));
        let seed = whole::<u64, 0, { u64::MAX }>("-1");
        assert_eq!(seed, Err("write a whole number, 0 or more".to_owned()));
        assert_eq!(positive_or_zero("2.5"), Ok(2.5));
        for wrong in ["-0.1", "inf", "NaN", "1e999", ""] {
            assert!(positive_or_zero(wrong).is_err(), "{wrong:?} was taken for a number");
        }
        assert_eq!(or_never("never", positive_or_zero), Ok(OrNever(None)));
        assert_eq!(or_never("3", positive_or_zero), Ok(OrNever(Some(3.0))));
        let advice = or_never("-3", positive_or_zero);
        assert_eq!(advice, Err("write a number, 0 or more; or never".to_owned()));
    }
}
