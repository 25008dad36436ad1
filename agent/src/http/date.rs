//! The `date` of responses that have none: text that is made once a second.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

struct Date {
    value: HeaderValue,
    /// From here on it is another one.
    until: SystemTime,
}

thread_local! {
    static DATE: RefCell<Date> = const { RefCell::new(Date { value: HeaderValue::from_static(""), until: UNIX_EPOCH }) };
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, now.
pub fn value() -> HeaderValue {
    with(HeaderValue::clone)
}

/// Hands the value of this second to `then`.
pub fn with<T>(then: impl FnOnce(&HeaderValue) -> T) -> T {
    DATE.with_borrow_mut(|date| {
        let now = SystemTime::now();
        // A clock that was set back is believed as well.
        if now >= date.until || date.until > now + Duration::from_secs(1) {
            date.render(now);
        }
        then(&date.value)
    })
}

impl Date {
    fn render(&mut self, now: SystemTime) {
        let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
        if let Ok(value) = HeaderValue::try_from(text) {
            self.value = value;
        }
        self.until = UNIX_EPOCH + Duration::from_secs(second + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_date_of_this_second() {
        let before = SystemTime::now() - Duration::from_secs(1);
        let date = httpdate::parse_http_date(value().to_str().expect("text")).expect("a date");
        assert!(date >= before && date <= SystemTime::now(), "{date:?}");
    }
}
