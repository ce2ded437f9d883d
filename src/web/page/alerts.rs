//! The open alerts: a table, which becomes a list if there is no room for columns.

use std::fmt;

use super::{
    Page, severity,
    show::{Text, When},
};
use crate::web::alerts::OpenAlert;

/// The API's value for a field with nothing to say.
const NOT_APPLICABLE: &str = "N/A";

impl Page<'_> {
    pub(super) fn alerts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<section class=\"alerts\">\n<h2 id=\"alerts\">Open alerts <small>")?;
        match self.alerts {
            Ok(alerts) if alerts.len() >= self.query.limit() => {
                write!(f, "the newest {}", alerts.len())?;
            }
            Ok(alerts) => write!(f, "{}", alerts.len())?,
            Err(_) => {}
        }
        f.write_str("</small></h2>\n")?;
        self.filter_form(f)?;
        match self.alerts {
            Ok(alerts) if alerts.is_empty() => f.write_str("<p class=\"muted\">None.</p>\n")?,
            Ok(alerts) => self.table(f, alerts)?,
            Err(error) => writeln!(
                f,
                "<div class=\"notice critical\">The open alerts cannot be shown now: {}.</div>",
                Text(error)
            )?,
        }
        f.write_str("</section>\n")
    }

    fn table(&self, f: &mut fmt::Formatter<'_>, alerts: &[OpenAlert<'_>]) -> fmt::Result {
        f.write_str(
            "<div class=\"scroll\"><table class=\"stack\"><thead><tr><th>state</th><th>alert</th>\
             <th>resource</th><th>search</th><th>status</th><th>created</th></tr></thead><tbody>\n",
        )?;
        for alert in alerts {
            self.alert(f, alert)?;
        }
        f.write_str("</tbody></table></div>\n")
    }

    fn alert(&self, f: &mut fmt::Formatter<'_>, alert: &OpenAlert<'_>) -> fmt::Result {
        let fields = &alert.fields;
        let state = fields.state.as_deref().unwrap_or("unknown");
        let subject = fields.message.as_deref().unwrap_or("(no subject)");
        write!(
            f,
            "<tr><td class=\"state\"><span class=\"badge {}\">{}</span></td>\
             <td class=\"subject\">{}<br><small>{}",
            severity(state).1,
            Text(state),
            Text(subject),
            Text(&alert.alert_id),
        )?;
        for part in [
            &fields.metric,
            &fields.component,
            &fields.priority,
            &fields.source,
        ]
        .into_iter()
        .flatten()
        .filter(|part| *part != NOT_APPLICABLE)
        {
            write!(f, " · {}", Text(part))?;
        }
        write!(
            f,
            "</small></td><td>{}</td><td>{} / {}<br><small>{}</small></td>\
             <td class=\"status\">{}</td><td class=\"created\">",
            Text(fields.resource_name.as_deref().unwrap_or_default()),
            Text(&alert.tenant),
            Text(&alert.search),
            Text(&alert.account),
            Text(fields.status.as_deref().unwrap_or_default()),
        )?;
        if let Some(at) = fields.created_at {
            let now = self.status.now;
            write!(f, "{}", When { at, now })?;
        }
        f.write_str("</td></tr>\n")
    }

    fn filter_form(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<form method=\"get\" action=\"#alerts\">")?;
        let query = self.query;
        for (name, value) in [
            ("account", &query.account),
            ("tenant", &query.tenant),
            ("search", &query.search),
            ("state", &query.state),
        ] {
            write!(
                f,
                "<input name=\"{name}\" placeholder=\"{name}\" aria-label=\"{name}\" value=\"{}\" \
                 autocapitalize=\"none\" autocomplete=\"off\">",
                Text(value.as_deref().unwrap_or_default())
            )?;
        }
        f.write_str("<button>filter</button></form>\n")
    }
}
