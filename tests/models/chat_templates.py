"""Chat templates of model families, in our own words: they render chats as the published ones do.

Tools, images and long default system messages are left out. What decides whether a tool chain can work with a template
is kept: asking for the date, refusing a system message, checks of the order of roles, reasoning that is put into
answers or taken out of them, and generation prompts that are not the beginning of an answer.
"""


def _join(source: str) -> str:
    """Return a template without the line breaks and the indentation that make its source readable here.

    The published ones use the marks of whitespace control instead, and rely on `trim_blocks` in part.
    """
    return "".join(line.strip() for line in source.splitlines())


LLAMA3 = _join(r"""
    {{ bos_token }}
    {% if date_string is not defined %}
        {% if strftime_now is defined %}
            {% set date_string = strftime_now('%d %b %Y') %}
        {% else %}
            {% set date_string = '26 Jul 2024' %}
        {% endif %}
    {% endif %}
    {% if messages[0]['role'] == 'system' %}
        {% set system = messages[0]['content'] | trim %}
        {% set messages = messages[1:] %}
    {% else %}
        {% set system = '' %}
    {% endif %}
    {{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' }}
    {{ 'Today Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}
    {% for message in messages %}
        {{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
    {% endfor %}
    {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
""")


def chatml(default: str = "", bos: bool = False) -> str:
    """Return a ChatML template. default: its system message where a chat has none. bos: begin with that token."""
    source = r"""
        {% for message in messages %}
            {% if loop.first and message['role'] != 'system' and DEFAULT %}
                {{ '<|im_start|>system\n' + DEFAULT + '<|im_end|>\n' }}
            {% endif %}
            {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
        {% endfor %}
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
    """
    return ("{{ bos_token }}" if bos else "") + _join(source).replace("DEFAULT", repr(default))


SMOLLM2 = chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face")
QWEN25 = chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
LFM2 = chatml(bos=True)

ZEPHYR = _join(r"""
    {% for message in messages %}
        {{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}
        {% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}
    {% endfor %}
""")

# The generation prompt opens the reasoning, and answers lose theirs: no answer begins as the prompt ends.
R1 = _join(r"""
    {% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
    {% set ns = namespace(system='') %}
    {% for message in messages %}
        {% if message['role'] == 'system' %}{% set ns.system = message['content'] %}{% endif %}
    {% endfor %}
    {{ bos_token }}{{ ns.system }}
    {% for message in messages %}
        {% if message['role'] == 'user' %}
            {{ '<｜User｜>' + message['content'] }}
        {% elif message['role'] == 'assistant' and message['content'] is not none %}
            {% set content = message['content'] %}
            {% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
            {{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
        {% endif %}
    {% endfor %}
    {% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}
""")

# An answer after the last question gets an empty block of reasoning, an earlier one loses its own.
QWEN3 = _join(r"""
    {% set ns = namespace(searching=true, last_query=messages|length - 1) %}
    {% for message in messages[::-1] %}
        {% if ns.searching and message.role == 'user' and message.content is string %}
            {% set ns.searching = false %}
            {% set ns.last_query = messages|length - 1 - loop.index0 %}
        {% endif %}
    {% endfor %}
    {% for message in messages %}
        {% set content = message.content if message.content is string else '' %}
        {{ '<|im_start|>' + message.role + '\n' }}
        {% if message.role == 'assistant' %}
            {% set reasoning = '' %}
            {% if message.reasoning_content is string %}
                {% set reasoning = message.reasoning_content %}
            {% elif '</think>' in content %}
                {% set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {% set content = content.split('</think>')[-1].lstrip('\n') %}
            {% endif %}
            {% if loop.index0 > ns.last_query and (loop.last or reasoning) %}
                {{ '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {% else %}
                {{ content }}
            {% endif %}
        {% else %}
            {{ content }}
        {% endif %}
        {{ '<|im_end|>\n' }}
    {% endfor %}
    {% if add_generation_prompt %}
        {{ '<|im_start|>assistant\n' }}
        {% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
    {% endif %}
""")

# Its generation prompt opens the reasoning; answers get none that they do not have.
QWEN35 = _join(r"""
    {% macro text_of(content) %}
        {% if content is string %}
            {{ content }}
        {% elif content is iterable and content is not mapping %}
            {% for item in content %}
                {% if 'image' in item or item.type == 'image' %}
                    {{ '<|vision_start|><|image_pad|><|vision_end|>' }}
                {% else %}
                    {{ item.text }}
                {% endif %}
            {% endfor %}
        {% endif %}
    {% endmacro %}
    {% if not messages %}{{ raise_exception('No messages provided.') }}{% endif %}
    {% set ns = namespace(searching=true, last_query=messages|length - 1) %}
    {% for message in messages[::-1] %}
        {% if ns.searching and message.role == 'user' %}
            {% set ns.searching = false %}
            {% set ns.last_query = messages|length - 1 - loop.index0 %}
        {% endif %}
    {% endfor %}
    {% if ns.searching %}{{ raise_exception('No user query found in messages.') }}{% endif %}
    {% for message in messages %}
        {% set content = text_of(message.content) | trim %}
        {% if message.role == 'system' and not loop.first %}
            {{ raise_exception('System message must be at the beginning.') }}
        {% elif message.role not in ['system', 'user', 'assistant'] %}
            {{ raise_exception('Unexpected message role.') }}
        {% endif %}
        {{ '<|im_start|>' + message.role + '\n' }}
        {% if message.role == 'assistant' %}
            {% set reasoning = content.split('</think>')[0].split('<think>')[-1] | trim if '</think>' in content else '' %}
            {% if loop.index0 > ns.last_query %}
                {{ '<think>\n' + reasoning + '\n</think>\n\n' }}
            {% endif %}
            {{ content.split('</think>')[-1].lstrip('\n') }}
        {% else %}
            {{ content }}
        {% endif %}
        {{ '<|im_end|>\n' }}
    {% endfor %}
    {% if add_generation_prompt %}
        {{ '<|im_start|>assistant\n<think>\n' }}
        {% if enable_thinking is defined and enable_thinking is false %}{{ '\n</think>\n\n' }}{% endif %}
    {% endif %}
""")

# Gemma 1 and 2.
GEMMA = _join(r"""
    {{ bos_token }}
    {% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
    {% for message in messages %}
        {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
            {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
        {% endif %}
        {% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
        {{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
    {% endfor %}
    {% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
""")

GEMMA3 = _join(r"""
    {{ bos_token }}
    {% set first_user_prefix = '' %}
    {% set loop_messages = messages %}
    {% if messages[0]['role'] == 'system' %}
        {% if messages[0]['content'] is string %}
            {% set first_user_prefix = messages[0]['content'] + '\n\n' %}
        {% else %}
            {% set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' %}
        {% endif %}
        {% set loop_messages = messages[1:] %}
    {% endif %}
    {% for message in loop_messages %}
        {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
            {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
        {% endif %}
        {% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
        {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}
        {% if message['content'] is string %}
            {{ message['content'] | trim }}
        {% elif message['content'] is iterable %}
            {% for item in message['content'] %}
                {{ '<start_of_image>' if item['type'] == 'image' else item['text'] | trim }}
            {% endfor %}
        {% else %}
            {{ raise_exception('Invalid content type') }}
        {% endif %}
        {{ '<end_of_turn>\n' }}
    {% endfor %}
    {% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
""")

# Without reasoning, the generation prompt closes an empty channel that answers do not have.
GEMMA4 = _join(r"""
    {% macro without_thoughts(text) %}
        {% set ns = namespace(result='') %}
        {% for part in text.split('<channel|>') %}
            {% set ns.result = ns.result + part.split('<|channel>')[0] %}
        {% endfor %}
        {{ ns.result | trim }}
    {% endmacro %}
    {% macro text_of(message) %}
        {% if message['content'] is string %}
            {{ without_thoughts(message['content']) if message['role'] == 'assistant' else message['content'] | trim }}
        {% else %}
            {% for item in message['content'] %}
                {{ '\n\n<|image|>\n\n' if item['type'] == 'image' else item['text'] | trim }}
            {% endfor %}
        {% endif %}
    {% endmacro %}
    {{ bos_token }}
    {% set loop_messages = messages %}
    {% set thinking = enable_thinking is defined and enable_thinking %}
    {% if thinking or messages[0]['role'] in ['system', 'developer'] %}
        {{ '<|turn>system\n' }}
        {% if thinking %}{{ '<|think|>' }}{% endif %}
        {% if messages[0]['role'] in ['system', 'developer'] %}
            {{ messages[0]['content'] | trim }}
            {% set loop_messages = messages[1:] %}
        {% endif %}
        {{ '<turn|>\n' }}
    {% endif %}
    {% for message in loop_messages %}
        {% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
        {{ '<|turn>' + role + '\n' + text_of(message) + '<turn|>\n' }}
    {% endfor %}
    {% if add_generation_prompt %}
        {{ '<|turn>model\n' }}
        {% if not enable_thinking | default(false) %}{{ '<|channel>thought\n<channel|>' }}{% endif %}
    {% endif %}
""")

PHI3 = _join(r"""
    {% for message in messages %}
        {% if message['role'] in ['system', 'user', 'assistant'] and message['content'] %}
            {{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}
        {% endif %}
    {% endfor %}
    {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}
""")

PHI4MINI = _join(r"""
    {% for message in messages %}
        {% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}
            {{ '<|system|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|><|end|>' }}
        {% else %}
            {{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}
        {% endif %}
    {% endfor %}
    {% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}
""")

_MISTRAL = r"""
    {% if messages[0]['role'] == 'system' %}
        {% set system_message = messages[0]['content'] %}
        {% set loop_messages = messages[1:] %}
    {% else %}
        {% set loop_messages = messages %}
    {% endif %}
    {{ bos_token }}
    {% for message in loop_messages %}
        {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
            {{ raise_exception('After the optional system message, conversation roles must alternate') }}
        {% endif %}
        {% if message['role'] == 'user' %}
            {{ OPEN }}
            {% if PLACE and system_message is defined %}{{ system_message + '\n\n' }}{% endif %}
            {{ message['content'] + CLOSE }}
        {% elif message['role'] == 'assistant' %}
            {{ ANSWER + eos_token }}
        {% else %}
            {{ raise_exception('Only user and assistant roles are supported') }}
        {% endif %}
    {% endfor %}
"""


def _mistral(place: str, opening: str, closing: str, answer: str) -> str:
    names = {"OPEN": opening, "CLOSE": closing, "ANSWER": answer, "PLACE": place}
    source = _MISTRAL
    for name, value in names.items():
        source = source.replace(name, value)
    return _join(source)


# v0.1 and v0.2 put the system message before the first question; v0.3 and Nemo before the last message that is one,
# so that it moves as a chat goes on, and is missing where the chat ends with an answer.
MISTRAL_V1 = _mistral("loop.first", "' [INST] '", "' [/INST]'", "' ' + message['content']")
MISTRAL_V3 = _mistral("loop.last", "'[INST] '", "'[/INST]'", "' ' + message['content'] | trim")
MISTRAL_NEMO = _mistral("loop.last", "'[INST]'", "'[/INST]'", "message['content'] | trim")

# The published default of the system message is two pages.
MINISTRAL3 = _join(r"""
    {% macro text_of(content) %}
        {% if content is string %}
            {{ content }}
        {% else %}
            {% for block in content %}{{ '[IMG]' if block['type'] == 'image' else block['text'] }}{% endfor %}
        {% endif %}
    {% endmacro %}
    {{ bos_token }}
    {% if messages[0]['role'] == 'system' %}
        {{ '[SYSTEM_PROMPT]' + text_of(messages[0]['content']) + '[/SYSTEM_PROMPT]' }}
        {% set loop_messages = messages[1:] %}
    {% else %}
        {{ '[SYSTEM_PROMPT]You are a Large Language Model (LLM) created by Mistral AI.[/SYSTEM_PROMPT]' }}
        {% set loop_messages = messages %}
    {% endif %}
    {% set ns = namespace(index=0) %}
    {% for message in loop_messages %}
        {% if (message['role'] == 'user') != (ns.index % 2 == 0) %}
            {{ raise_exception('After the optional system message, conversation roles must alternate') }}
        {% endif %}
        {% set ns.index = ns.index + 1 %}
        {% if message['role'] == 'user' %}
            {{ '[INST]' + text_of(message['content']) + '[/INST]' }}
        {% elif message['role'] == 'assistant' %}
            {{ text_of(message['content']) + eos_token }}
        {% else %}
            {{ raise_exception('Only user, assistant and tool roles are supported, got ' + message['role'] + '.') }}
        {% endif %}
    {% endfor %}
""")

# Asks for the date in each chat. The published default instructions are a page per mode.
SMOLLM3 = _join(r"""
    {% set enable_thinking = enable_thinking if enable_thinking is defined else true %}
    {% set mode = '/think' if enable_thinking else '/no_think' %}
    {% set custom = '' %}
    {% set override = false %}
    {% if messages[0].role == 'system' %}
        {% set system_message = messages[0].content %}
        {% if '/no_think' in system_message %}
            {% set mode = '/no_think' %}
        {% elif '/think' in system_message %}
            {% set mode = '/think' %}
        {% endif %}
        {% set override = '/system_override' in system_message %}
        {% set custom = system_message.replace('/no_think', '').replace('/think', '').rstrip() %}
    {% endif %}
    {{ '<|im_start|>system\n' }}
    {% if override %}
        {{ custom.replace('/system_override', '').rstrip() + '<|im_end|>\n' }}
    {% else %}
        {{ '## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: ' + strftime_now('%d %B %Y') + '\n' }}
        {{ 'Reasoning Mode: ' + mode + '\n\n## Custom Instructions\n\n' }}
        {% if custom %}
            {{ custom + '\n\n' }}
        {% else %}
            {{ 'You are a helpful AI assistant named SmolLM, trained by Hugging Face.\n\n' }}
        {% endif %}
        {{ '<|im_end|>\n' }}
    {% endif %}
    {% for message in messages %}
        {% set content = message.content if message.content is string else '' %}
        {% if message.role == 'user' %}
            {{ '<|im_start|>user\n' + content + '<|im_end|>\n' }}
        {% elif message.role == 'assistant' %}
            {{ '<|im_start|>assistant\n' + ('<think>\n\n</think>\n' if mode == '/no_think' else '') }}
            {{ content.lstrip('\n') + '<|im_end|>\n' }}
        {% endif %}
    {% endfor %}
    {% if add_generation_prompt %}
        {{ '<|im_start|>assistant\n' + ('<think>\n\n</think>\n' if mode == '/no_think' else '') }}
    {% endif %}
""")

_GRANITE = r"""
    {% for message in loop_messages %}
        {{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
    {% endfor %}
    {% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}
"""
_GRANITE_SYSTEM = r"""
    {% if messages[0]['role'] == 'system' %}
        {% set system_message = messages[0]['content'] %}
        {% set loop_messages = messages[1:] %}
    {% else %}
        {% set system_message = DEFAULT %}
        {% set loop_messages = messages %}
    {% endif %}
    {{ '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}
"""
# Asks for the date where a chat has no system message.
GRANITE33 = _join(
    _GRANITE_SYSTEM.replace(
        "DEFAULT",
        r"""'Knowledge Cutoff Date: April 2024.\nToday\'s Date: ' + strftime_now('%B %d, %Y')
        + '.\nYou are Granite, developed by IBM. You are a helpful AI assistant.'""",
    )
    + _GRANITE
)
GRANITE4 = _join(
    _GRANITE_SYSTEM.replace(
        "DEFAULT",
        "'You are a helpful assistant. Please ensure responses are professional, accurate, and safe.'",
    )
    + _GRANITE
)

OLMO1 = _join(r"""
    {{ eos_token }}
    {% for message in messages %}
        {{ '<|' + message['role'] + '|>\n' + message['content'] }}
        {{ (eos_token if message['role'] == 'assistant' else '') + '\n' }}
        {% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}
    {% endfor %}
""")

# The last answer ends without a line break.
OLMO2 = _join(r"""
    {{ bos_token }}
    {% for message in messages %}
        {{ '<|' + message['role'] + '|>\n' + message['content'] }}
        {% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}
        {% if not (loop.last and message['role'] == 'assistant') %}{{ '\n' }}{% endif %}
        {% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}
    {% endfor %}
""")

# The last answer ends with another token than the earlier ones.
OLMO3 = _join(r"""
    {% if messages | selectattr('role', 'equalto', 'system') | list | length == 0 %}
        {{ '<|im_start|>system\nYou are a helpful function-calling AI assistant. ' }}
        {{ 'You do not currently have access to any functions. <functions></functions><|im_end|>\n' }}
    {% endif %}
    {% for message in messages %}
        {{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}
        {% if message['role'] == 'assistant' and loop.last %}{{ eos_token }}{% else %}{{ '<|im_end|>\n' }}{% endif %}
        {% if loop.last and add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
    {% endfor %}
""")

# No token ends an answer.
NEMOTRON = _join(r"""
    {{ '<extra_id_0>System' }}
    {% for message in messages %}
        {% if message['role'] == 'system' %}{{ '\n' + message['content'].strip() }}{% endif %}
    {% endfor %}
    {{ '\n' }}
    {% for message in messages %}
        {% if message['role'] == 'user' %}
            {{ '\n<extra_id_1>User\n' + message['content'].strip() }}
        {% elif message['role'] == 'assistant' %}
            {{ '\n<extra_id_1>Assistant\n' + message['content'].strip() }}
        {% endif %}
    {% endfor %}
    {% if add_generation_prompt %}{{ '\n<extra_id_1>Assistant\n' }}{% endif %}
""")

# The last answer gets an empty block of reasoning, as the generation prompt does unless reasoning is asked for.
EXAONE4 = _join(r"""
    {% set ns = namespace(last_query=-1) %}
    {% for message in messages %}
        {% if message.role == 'user' %}{% set ns.last_query = loop.index0 %}{% endif %}
    {% endfor %}
    {% for message in messages %}
        {{ '[|' + message.role + '|]\n' }}
        {% if message.role == 'assistant' %}
            {% if loop.index0 > ns.last_query and '</think>' not in message.content %}
                {{ '<think>\n\n</think>\n\n' }}
            {% endif %}
            {{ message.content if loop.index0 > ns.last_query else message.content.split('</think>')[-1].lstrip() }}
        {% else %}
            {{ message.content }}
        {% endif %}
        {{ '[|endofturn|]\n' }}
    {% endfor %}
    {% if add_generation_prompt %}
        {{ '[|assistant|]\n' }}
        {% if enable_thinking is defined and enable_thinking is true %}
            {{ '<think>\n' }}
        {% else %}
            {{ '<think>\n\n</think>\n\n' }}
        {% endif %}
    {% endif %}
""")

# What ends an answer is the token that begins the next question.
GLM4 = _join(r"""
    {{ '[gMASK]<sop>' }}
    {% for item in messages %}{{ '<|' + item['role'] + '|>\n' + item['content'] }}{% endfor %}
    {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}
""")

# Harmony: asks for the date in each chat, and the generation prompt ends before the channel of the answer.
GPT_OSS = _join(r"""
    {{ '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n' }}
    {{ 'Knowledge cutoff: 2024-06\nCurrent date: ' + strftime_now('%Y-%m-%d') + '\n\n' }}
    {{ 'Reasoning: ' + (reasoning_effort if reasoning_effort is defined else 'medium') + '\n\n' }}
    {{ '# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>' }}
    {% if messages[0].role in ['developer', 'system'] %}
        {{ '<|start|>developer<|message|># Instructions\n\n' + messages[0].content + '\n\n<|end|>' }}
        {% set loop_messages = messages[1:] %}
    {% else %}
        {% set loop_messages = messages %}
    {% endif %}
    {% for message in loop_messages %}
        {% if message.role == 'assistant' %}
            {{ '<|start|>assistant<|channel|>final<|message|>' + message.content }}
            {{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
        {% else %}
            {{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
        {% endif %}
    {% endfor %}
    {% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}
""")

# The generation prompt ends with a space, which tokenizers join with the first word of the answer.
ERNIE45 = _join(r"""
    {% if not add_generation_prompt is defined %}{% set add_generation_prompt = true %}{% endif %}
    {% if not cls_token is defined %}{% set cls_token = '<|begin_of_sentence|>' %}{% endif %}
    {% if not eos_token is defined %}{% set eos_token = '</s>' %}{% endif %}
    {{ cls_token }}
    {% for message in messages %}
        {% if message['role'] == 'user' %}
            {{ 'User: ' + message['content'] + '\n' }}
        {% elif message['role'] == 'assistant' %}
            {{ 'Assistant: ' + message['content'] + eos_token }}
        {% elif message['role'] == 'system' %}
            {{ message['content'] + '\n' }}
        {% endif %}
    {% endfor %}
    {% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}
""")

HUNYUAN = _join(r"""
    {% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
    {% set ns = namespace(system='') %}
    {% for message in messages %}
        {% if message['role'] == 'system' %}{% set ns.system = ns.system + message['content'] %}{% endif %}
    {% endfor %}
    {{ bos_token + ns.system + ('<｜hy_place▁holder▁no▁3｜>' if ns.system else '') }}
    {% for message in messages %}
        {% if message['role'] == 'user' %}
            {{ '<｜hy_User｜>' + message['content'] }}
        {% elif message['role'] == 'assistant' %}
            {% set content = message['content'].split('<answer>')[-1].split('</answer>')[0] | trim %}
            {{ '<｜hy_Assistant｜>' + content + '<｜hy_place▁holder▁no▁2｜>' }}
        {% endif %}
    {% endfor %}
    {% if add_generation_prompt %}
        {{ '<｜hy_Assistant｜>' }}
        {% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}
    {% endif %}
""")
