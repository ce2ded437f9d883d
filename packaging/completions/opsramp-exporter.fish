# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_opsramp_exporter_global_optspecs
    string join \n V/version config.file= config.check opsramp.url= opsramp.token-url= opsramp.tenant= opsramp.client-id= opsramp.client-secret-file= opsramp.insecure-skip-verify search.query= search.interval= state.path= state.postgres-url-file= web.listen-address= web.telemetry-path= web.config.file= web.enable-lifecycle web.systemd-socket log.level= log.format= h/help
end

function __fish_opsramp_exporter_needs_command
    # Figure out if the current invocation already has a command.
    set -l words (commandline -opc)
    set -e words[1]
    set -l with_value (__fish_opsramp_exporter_global_optspecs | string replace -rf '^(?:./)?(.*)=$' '$1')
    set -l is_value 0
    for word in $words
        if test $is_value = 1
            set is_value 0
        else if string match -q -- '--*' $word
            if contains -- (string sub -s 3 -- $word) $with_value
                set is_value 1
            end
        else if not string match -q -- '-*' $word
            # Also print the command, so this can be used to figure out what it is.
            echo $word
            return 1
        end
    end
    return 0
end

function __fish_opsramp_exporter_using_subcommand
    set -l cmd (__fish_opsramp_exporter_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l config.file -d 'The configuration file [env: OPSRAMP_EXPORTER_CONFIG_FILE]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l opsramp.url -d 'The base URL, such as https://acme.api.opsramp.com [env: OPSRAMP_URL]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l opsramp.token-url -d 'The token endpoint [env: OPSRAMP_TOKEN_URL] [default: {url}/auth/oauth/token]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l opsramp.tenant -d 'A tenant\'s id, or several with commas; may be repeated [env: OPSRAMP_TENANT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l opsramp.client-id -d 'The OAuth2 key [env: OPSRAMP_CLIENT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l opsramp.client-secret-file -d 'A file with the OAuth2 secret [env: OPSRAMP_CLIENT_SECRET_FILE, or OPSRAMP_CLIENT_SECRET with the secret itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l search.query -d 'OpsRamp\'s query string; to `search` also the name of a configured search, without it the first one [default: actions:OPEN]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l search.interval -d 'Time between two polls [default: 30s]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l state.path -d 'The file of the embedded store [env: OPSRAMP_EXPORTER_STATE_PATH] [default: $STATE_DIRECTORY/state.db, else ./opsramp-exporter.db]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l state.postgres-url-file -d 'A file with the URL of a PostgreSQL server, for several replicas [env: OPSRAMP_EXPORTER_POSTGRES_URL with the URL itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l web.listen-address -d 'Where to listen; may be repeated [default: :10836]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l web.telemetry-path -d 'The path of the metrics [default: /metrics]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l web.config.file -d 'TLS and passwords, in the format of the Prometheus exporter-toolkit' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l log.level -d 'How verbose the diagnostics are' -r -f -a "debug\t''
info\t''
warn\t''
error\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l log.format -d 'How the diagnostics look' -r -f -a "logfmt\t''
json\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -s V -l version -d 'Print version, revision and compiler'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l config.check -d 'Validate the configuration and exit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l opsramp.insecure-skip-verify -d 'Accept any certificate: whoever sits in between can then read the secret'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l web.enable-lifecycle -d 'Accept POST /-/reload and POST /-/quit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -l web.systemd-socket -d 'Take the listening socket from systemd'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -s h -l help -d 'Print help'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -f -a "run" -d 'Run the daemon (the default)'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -f -a "check" -d 'Go through the set-up step by step; say what works, and what to do about what does not'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -f -a "search" -d 'Search once; print every alert found'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -f -a "demo" -d 'Run the daemon against a built-in OpsRamp simulator; nothing to configure'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -f -a "healthcheck" -d 'Ask the running exporter whether it works; status 0 if it does'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_needs_command" -f -a "config" -d 'Print the effective configuration, without secrets'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l config.file -d 'The configuration file [env: OPSRAMP_EXPORTER_CONFIG_FILE]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l opsramp.url -d 'The base URL, such as https://acme.api.opsramp.com [env: OPSRAMP_URL]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l opsramp.token-url -d 'The token endpoint [env: OPSRAMP_TOKEN_URL] [default: {url}/auth/oauth/token]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l opsramp.tenant -d 'A tenant\'s id, or several with commas; may be repeated [env: OPSRAMP_TENANT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l opsramp.client-id -d 'The OAuth2 key [env: OPSRAMP_CLIENT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l opsramp.client-secret-file -d 'A file with the OAuth2 secret [env: OPSRAMP_CLIENT_SECRET_FILE, or OPSRAMP_CLIENT_SECRET with the secret itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l search.query -d 'OpsRamp\'s query string; to `search` also the name of a configured search, without it the first one [default: actions:OPEN]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l search.interval -d 'Time between two polls [default: 30s]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l state.path -d 'The file of the embedded store [env: OPSRAMP_EXPORTER_STATE_PATH] [default: $STATE_DIRECTORY/state.db, else ./opsramp-exporter.db]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l state.postgres-url-file -d 'A file with the URL of a PostgreSQL server, for several replicas [env: OPSRAMP_EXPORTER_POSTGRES_URL with the URL itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l web.listen-address -d 'Where to listen; may be repeated [default: :10836]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l web.telemetry-path -d 'The path of the metrics [default: /metrics]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l web.config.file -d 'TLS and passwords, in the format of the Prometheus exporter-toolkit' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l log.level -d 'How verbose the diagnostics are' -r -f -a "debug\t''
info\t''
warn\t''
error\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l log.format -d 'How the diagnostics look' -r -f -a "logfmt\t''
json\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -s V -l version -d 'Print version, revision and compiler'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l config.check -d 'Validate the configuration and exit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l opsramp.insecure-skip-verify -d 'Accept any certificate: whoever sits in between can then read the secret'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l web.enable-lifecycle -d 'Accept POST /-/reload and POST /-/quit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -l web.systemd-socket -d 'Take the listening socket from systemd'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand run" -s h -l help -d 'Print help'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l config.file -d 'The configuration file [env: OPSRAMP_EXPORTER_CONFIG_FILE]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l opsramp.url -d 'The base URL, such as https://acme.api.opsramp.com [env: OPSRAMP_URL]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l opsramp.token-url -d 'The token endpoint [env: OPSRAMP_TOKEN_URL] [default: {url}/auth/oauth/token]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l opsramp.tenant -d 'A tenant\'s id, or several with commas; may be repeated [env: OPSRAMP_TENANT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l opsramp.client-id -d 'The OAuth2 key [env: OPSRAMP_CLIENT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l opsramp.client-secret-file -d 'A file with the OAuth2 secret [env: OPSRAMP_CLIENT_SECRET_FILE, or OPSRAMP_CLIENT_SECRET with the secret itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l search.query -d 'OpsRamp\'s query string; to `search` also the name of a configured search, without it the first one [default: actions:OPEN]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l search.interval -d 'Time between two polls [default: 30s]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l state.path -d 'The file of the embedded store [env: OPSRAMP_EXPORTER_STATE_PATH] [default: $STATE_DIRECTORY/state.db, else ./opsramp-exporter.db]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l state.postgres-url-file -d 'A file with the URL of a PostgreSQL server, for several replicas [env: OPSRAMP_EXPORTER_POSTGRES_URL with the URL itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l web.listen-address -d 'Where to listen; may be repeated [default: :10836]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l web.telemetry-path -d 'The path of the metrics [default: /metrics]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l web.config.file -d 'TLS and passwords, in the format of the Prometheus exporter-toolkit' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l log.level -d 'How verbose the diagnostics are' -r -f -a "debug\t''
info\t''
warn\t''
error\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l log.format -d 'How the diagnostics look' -r -f -a "logfmt\t''
json\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -s V -l version -d 'Print version, revision and compiler'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l config.check -d 'Validate the configuration and exit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l opsramp.insecure-skip-verify -d 'Accept any certificate: whoever sits in between can then read the secret'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l web.enable-lifecycle -d 'Accept POST /-/reload and POST /-/quit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -l web.systemd-socket -d 'Take the listening socket from systemd'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand check" -s h -l help -d 'Print help'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l output -d 'How to print alerts [default: table on a terminal, else jsonl]' -r -f -a "table\t'A table for people'
json\t'One JSON array'
jsonl\t'One JSON object a line'"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l config.file -d 'The configuration file [env: OPSRAMP_EXPORTER_CONFIG_FILE]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l opsramp.url -d 'The base URL, such as https://acme.api.opsramp.com [env: OPSRAMP_URL]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l opsramp.token-url -d 'The token endpoint [env: OPSRAMP_TOKEN_URL] [default: {url}/auth/oauth/token]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l opsramp.tenant -d 'A tenant\'s id, or several with commas; may be repeated [env: OPSRAMP_TENANT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l opsramp.client-id -d 'The OAuth2 key [env: OPSRAMP_CLIENT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l opsramp.client-secret-file -d 'A file with the OAuth2 secret [env: OPSRAMP_CLIENT_SECRET_FILE, or OPSRAMP_CLIENT_SECRET with the secret itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l search.query -d 'OpsRamp\'s query string; to `search` also the name of a configured search, without it the first one [default: actions:OPEN]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l search.interval -d 'Time between two polls [default: 30s]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l state.path -d 'The file of the embedded store [env: OPSRAMP_EXPORTER_STATE_PATH] [default: $STATE_DIRECTORY/state.db, else ./opsramp-exporter.db]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l state.postgres-url-file -d 'A file with the URL of a PostgreSQL server, for several replicas [env: OPSRAMP_EXPORTER_POSTGRES_URL with the URL itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l web.listen-address -d 'Where to listen; may be repeated [default: :10836]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l web.telemetry-path -d 'The path of the metrics [default: /metrics]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l web.config.file -d 'TLS and passwords, in the format of the Prometheus exporter-toolkit' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l log.level -d 'How verbose the diagnostics are' -r -f -a "debug\t''
info\t''
warn\t''
error\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l log.format -d 'How the diagnostics look' -r -f -a "logfmt\t''
json\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l count -d 'Print the number of alerts only, of all tenants together, at the cost of one request a tenant'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -s V -l version -d 'Print version, revision and compiler'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l config.check -d 'Validate the configuration and exit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l opsramp.insecure-skip-verify -d 'Accept any certificate: whoever sits in between can then read the secret'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l web.enable-lifecycle -d 'Accept POST /-/reload and POST /-/quit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -l web.systemd-socket -d 'Take the listening socket from systemd'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand search" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l simulator.listen-address -d 'Where the simulator listens, so that other clients can be pointed at it' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l config.file -d 'The configuration file [env: OPSRAMP_EXPORTER_CONFIG_FILE]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l opsramp.url -d 'The base URL, such as https://acme.api.opsramp.com [env: OPSRAMP_URL]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l opsramp.token-url -d 'The token endpoint [env: OPSRAMP_TOKEN_URL] [default: {url}/auth/oauth/token]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l opsramp.tenant -d 'A tenant\'s id, or several with commas; may be repeated [env: OPSRAMP_TENANT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l opsramp.client-id -d 'The OAuth2 key [env: OPSRAMP_CLIENT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l opsramp.client-secret-file -d 'A file with the OAuth2 secret [env: OPSRAMP_CLIENT_SECRET_FILE, or OPSRAMP_CLIENT_SECRET with the secret itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l search.query -d 'OpsRamp\'s query string; to `search` also the name of a configured search, without it the first one [default: actions:OPEN]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l search.interval -d 'Time between two polls [default: 30s]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l state.path -d 'The file of the embedded store [env: OPSRAMP_EXPORTER_STATE_PATH] [default: $STATE_DIRECTORY/state.db, else ./opsramp-exporter.db]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l state.postgres-url-file -d 'A file with the URL of a PostgreSQL server, for several replicas [env: OPSRAMP_EXPORTER_POSTGRES_URL with the URL itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l web.listen-address -d 'Where to listen; may be repeated [default: :10836]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l web.telemetry-path -d 'The path of the metrics [default: /metrics]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l web.config.file -d 'TLS and passwords, in the format of the Prometheus exporter-toolkit' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l log.level -d 'How verbose the diagnostics are' -r -f -a "debug\t''
info\t''
warn\t''
error\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l log.format -d 'How the diagnostics look' -r -f -a "logfmt\t''
json\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -s V -l version -d 'Print version, revision and compiler'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l config.check -d 'Validate the configuration and exit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l opsramp.insecure-skip-verify -d 'Accept any certificate: whoever sits in between can then read the secret'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l web.enable-lifecycle -d 'Accept POST /-/reload and POST /-/quit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -l web.systemd-socket -d 'Take the listening socket from systemd'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand demo" -s h -l help -d 'Print help'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l url -d 'Its address, such as http://127.0.0.1:10836 [default: as the configuration says]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l config.file -d 'The configuration file [env: OPSRAMP_EXPORTER_CONFIG_FILE]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l opsramp.url -d 'The base URL, such as https://acme.api.opsramp.com [env: OPSRAMP_URL]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l opsramp.token-url -d 'The token endpoint [env: OPSRAMP_TOKEN_URL] [default: {url}/auth/oauth/token]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l opsramp.tenant -d 'A tenant\'s id, or several with commas; may be repeated [env: OPSRAMP_TENANT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l opsramp.client-id -d 'The OAuth2 key [env: OPSRAMP_CLIENT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l opsramp.client-secret-file -d 'A file with the OAuth2 secret [env: OPSRAMP_CLIENT_SECRET_FILE, or OPSRAMP_CLIENT_SECRET with the secret itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l search.query -d 'OpsRamp\'s query string; to `search` also the name of a configured search, without it the first one [default: actions:OPEN]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l search.interval -d 'Time between two polls [default: 30s]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l state.path -d 'The file of the embedded store [env: OPSRAMP_EXPORTER_STATE_PATH] [default: $STATE_DIRECTORY/state.db, else ./opsramp-exporter.db]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l state.postgres-url-file -d 'A file with the URL of a PostgreSQL server, for several replicas [env: OPSRAMP_EXPORTER_POSTGRES_URL with the URL itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l web.listen-address -d 'Where to listen; may be repeated [default: :10836]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l web.telemetry-path -d 'The path of the metrics [default: /metrics]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l web.config.file -d 'TLS and passwords, in the format of the Prometheus exporter-toolkit' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l log.level -d 'How verbose the diagnostics are' -r -f -a "debug\t''
info\t''
warn\t''
error\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l log.format -d 'How the diagnostics look' -r -f -a "logfmt\t''
json\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l insecure -d 'Accept any certificate of that address'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -s V -l version -d 'Print version, revision and compiler'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l config.check -d 'Validate the configuration and exit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l opsramp.insecure-skip-verify -d 'Accept any certificate: whoever sits in between can then read the secret'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l web.enable-lifecycle -d 'Accept POST /-/reload and POST /-/quit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -l web.systemd-socket -d 'Take the listening socket from systemd'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand healthcheck" -s h -l help -d 'Print help'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l config.file -d 'The configuration file [env: OPSRAMP_EXPORTER_CONFIG_FILE]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l opsramp.url -d 'The base URL, such as https://acme.api.opsramp.com [env: OPSRAMP_URL]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l opsramp.token-url -d 'The token endpoint [env: OPSRAMP_TOKEN_URL] [default: {url}/auth/oauth/token]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l opsramp.tenant -d 'A tenant\'s id, or several with commas; may be repeated [env: OPSRAMP_TENANT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l opsramp.client-id -d 'The OAuth2 key [env: OPSRAMP_CLIENT_ID]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l opsramp.client-secret-file -d 'A file with the OAuth2 secret [env: OPSRAMP_CLIENT_SECRET_FILE, or OPSRAMP_CLIENT_SECRET with the secret itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l search.query -d 'OpsRamp\'s query string; to `search` also the name of a configured search, without it the first one [default: actions:OPEN]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l search.interval -d 'Time between two polls [default: 30s]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l state.path -d 'The file of the embedded store [env: OPSRAMP_EXPORTER_STATE_PATH] [default: $STATE_DIRECTORY/state.db, else ./opsramp-exporter.db]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l state.postgres-url-file -d 'A file with the URL of a PostgreSQL server, for several replicas [env: OPSRAMP_EXPORTER_POSTGRES_URL with the URL itself]' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l web.listen-address -d 'Where to listen; may be repeated [default: :10836]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l web.telemetry-path -d 'The path of the metrics [default: /metrics]' -r
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l web.config.file -d 'TLS and passwords, in the format of the Prometheus exporter-toolkit' -r -F
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l log.level -d 'How verbose the diagnostics are' -r -f -a "debug\t''
info\t''
warn\t''
error\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l log.format -d 'How the diagnostics look' -r -f -a "logfmt\t''
json\t''"
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l schema -d 'Print the JSON Schema of the configuration file'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -s V -l version -d 'Print version, revision and compiler'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l config.check -d 'Validate the configuration and exit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l opsramp.insecure-skip-verify -d 'Accept any certificate: whoever sits in between can then read the secret'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l web.enable-lifecycle -d 'Accept POST /-/reload and POST /-/quit'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -l web.systemd-socket -d 'Take the listening socket from systemd'
complete -c opsramp-exporter -n "__fish_opsramp_exporter_using_subcommand config" -s h -l help -d 'Print help'
