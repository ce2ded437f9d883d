_opsramp__exporter() {
    local i cur prev opts cmd
    COMPREPLY=()
    if [[ "${BASH_VERSINFO[0]}" -ge 4 ]]; then
        cur="$2"
    else
        cur="${COMP_WORDS[COMP_CWORD]}"
    fi
    prev="$3"
    cmd=""
    opts=""

    for i in "${COMP_WORDS[@]:0:COMP_CWORD}"
    do
        case "${cmd},${i}" in
            ",$1")
                cmd="opsramp__exporter"
                ;;
            opsramp__exporter,check)
                cmd="opsramp__exporter__subcmd__check"
                ;;
            opsramp__exporter,config)
                cmd="opsramp__exporter__subcmd__config"
                ;;
            opsramp__exporter,demo)
                cmd="opsramp__exporter__subcmd__demo"
                ;;
            opsramp__exporter,healthcheck)
                cmd="opsramp__exporter__subcmd__healthcheck"
                ;;
            opsramp__exporter,run)
                cmd="opsramp__exporter__subcmd__run"
                ;;
            opsramp__exporter,search)
                cmd="opsramp__exporter__subcmd__search"
                ;;
            *)
                ;;
        esac
    done

    case "${cmd}" in
        opsramp__exporter)
            opts="-V -h --version --config.file --config.check --opsramp.url --opsramp.token-url --opsramp.tenant --opsramp.client-id --opsramp.client-secret-file --opsramp.insecure-skip-verify --search.query --search.interval --state.path --state.postgres-url-file --web.listen-address --web.telemetry-path --web.config.file --web.enable-lifecycle --web.systemd-socket --log.level --log.format --help run check search demo healthcheck config"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 1 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.token-url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.tenant)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-id)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-secret-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.query)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.postgres-url-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.listen-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.telemetry-path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log.level)
                    COMPREPLY=($(compgen -W "debug info warn error" -- "${cur}"))
                    return 0
                    ;;
                --log.format)
                    COMPREPLY=($(compgen -W "logfmt json" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        opsramp__exporter__subcmd__check)
            opts="-V -h --version --config.file --config.check --opsramp.url --opsramp.token-url --opsramp.tenant --opsramp.client-id --opsramp.client-secret-file --opsramp.insecure-skip-verify --search.query --search.interval --state.path --state.postgres-url-file --web.listen-address --web.telemetry-path --web.config.file --web.enable-lifecycle --web.systemd-socket --log.level --log.format --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.token-url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.tenant)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-id)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-secret-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.query)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.postgres-url-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.listen-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.telemetry-path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log.level)
                    COMPREPLY=($(compgen -W "debug info warn error" -- "${cur}"))
                    return 0
                    ;;
                --log.format)
                    COMPREPLY=($(compgen -W "logfmt json" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        opsramp__exporter__subcmd__config)
            opts="-V -h --schema --version --config.file --config.check --opsramp.url --opsramp.token-url --opsramp.tenant --opsramp.client-id --opsramp.client-secret-file --opsramp.insecure-skip-verify --search.query --search.interval --state.path --state.postgres-url-file --web.listen-address --web.telemetry-path --web.config.file --web.enable-lifecycle --web.systemd-socket --log.level --log.format --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.token-url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.tenant)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-id)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-secret-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.query)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.postgres-url-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.listen-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.telemetry-path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log.level)
                    COMPREPLY=($(compgen -W "debug info warn error" -- "${cur}"))
                    return 0
                    ;;
                --log.format)
                    COMPREPLY=($(compgen -W "logfmt json" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        opsramp__exporter__subcmd__demo)
            opts="-V -h --simulator.listen-address --version --config.file --config.check --opsramp.url --opsramp.token-url --opsramp.tenant --opsramp.client-id --opsramp.client-secret-file --opsramp.insecure-skip-verify --search.query --search.interval --state.path --state.postgres-url-file --web.listen-address --web.telemetry-path --web.config.file --web.enable-lifecycle --web.systemd-socket --log.level --log.format --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --simulator.listen-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.token-url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.tenant)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-id)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-secret-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.query)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.postgres-url-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.listen-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.telemetry-path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log.level)
                    COMPREPLY=($(compgen -W "debug info warn error" -- "${cur}"))
                    return 0
                    ;;
                --log.format)
                    COMPREPLY=($(compgen -W "logfmt json" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        opsramp__exporter__subcmd__healthcheck)
            opts="-V -h --url --insecure --version --config.file --config.check --opsramp.url --opsramp.token-url --opsramp.tenant --opsramp.client-id --opsramp.client-secret-file --opsramp.insecure-skip-verify --search.query --search.interval --state.path --state.postgres-url-file --web.listen-address --web.telemetry-path --web.config.file --web.enable-lifecycle --web.systemd-socket --log.level --log.format --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.token-url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.tenant)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-id)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-secret-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.query)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.postgres-url-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.listen-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.telemetry-path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log.level)
                    COMPREPLY=($(compgen -W "debug info warn error" -- "${cur}"))
                    return 0
                    ;;
                --log.format)
                    COMPREPLY=($(compgen -W "logfmt json" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        opsramp__exporter__subcmd__run)
            opts="-V -h --version --config.file --config.check --opsramp.url --opsramp.token-url --opsramp.tenant --opsramp.client-id --opsramp.client-secret-file --opsramp.insecure-skip-verify --search.query --search.interval --state.path --state.postgres-url-file --web.listen-address --web.telemetry-path --web.config.file --web.enable-lifecycle --web.systemd-socket --log.level --log.format --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.token-url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.tenant)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-id)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-secret-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.query)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.postgres-url-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.listen-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.telemetry-path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log.level)
                    COMPREPLY=($(compgen -W "debug info warn error" -- "${cur}"))
                    return 0
                    ;;
                --log.format)
                    COMPREPLY=($(compgen -W "logfmt json" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        opsramp__exporter__subcmd__search)
            opts="-V -h --output --count --version --config.file --config.check --opsramp.url --opsramp.token-url --opsramp.tenant --opsramp.client-id --opsramp.client-secret-file --opsramp.insecure-skip-verify --search.query --search.interval --state.path --state.postgres-url-file --web.listen-address --web.telemetry-path --web.config.file --web.enable-lifecycle --web.systemd-socket --log.level --log.format --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --output)
                    COMPREPLY=($(compgen -W "table json jsonl" -- "${cur}"))
                    return 0
                    ;;
                --config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.token-url)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.tenant)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-id)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --opsramp.client-secret-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.query)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --search.interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --state.postgres-url-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.listen-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.telemetry-path)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --web.config.file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log.level)
                    COMPREPLY=($(compgen -W "debug info warn error" -- "${cur}"))
                    return 0
                    ;;
                --log.format)
                    COMPREPLY=($(compgen -W "logfmt json" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
    esac
}

if [[ "${BASH_VERSINFO[0]}" -eq 4 && "${BASH_VERSINFO[1]}" -ge 4 || "${BASH_VERSINFO[0]}" -gt 4 ]]; then
    complete -F _opsramp__exporter -o nosort -o bashdefault -o default opsramp-exporter
else
    complete -F _opsramp__exporter -o bashdefault -o default opsramp-exporter
fi
